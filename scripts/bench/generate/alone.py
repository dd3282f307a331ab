"""Measurements of this project alone, each against a limit of the machine."""

import sys
from pathlib import Path
from typing import Any

from generate.machine_probe import GemmProbe, ReadProbe
from generate.measure import OURS, Contestant, Limits, Shape, measure, start_worker
from generate.report import Series, format_rows

from mindformers_glm.config.glm_config import GlmConfig

_NEW_TOKENS = 8
_SHORT_CONTEXT = 16
# Beside a model that fills the memory there is no room for a large buffer.
_SMALL_BUFFER_BYTES = 256 << 20


def measure_whole_model(model: str, variant: str, threads: int, rounds: int) -> dict[str, Any]:
    """Load a whole model and generate: time against memory speed, peak memory, swapping."""
    config = GlmConfig.from_hf(model)
    max_model_len = _SHORT_CONTEXT + (rounds + 2) * _NEW_TOKENS
    limits = Limits(threads, config.vocab_size, 1, max_model_len)
    contestant = Contestant(OURS, variant, sys.executable, model)
    probe = ReadProbe(_SMALL_BUFFER_BYTES)
    swapped_before = _count_swapped_pages()
    with start_worker(contestant, limits, "default") as worker:
        shape = Shape(1, _SHORT_CONTEXT, _NEW_TOKENS)
        (series,) = measure(shape, [worker], config, probe, rounds)
        memory = worker.ask(do="memory")
    found = {
        "format": variant,
        "load s": worker.ready["load_s"],
        **_describe_decode(series),
        "peak GB (2**30)": memory["peak_bytes"] / 2**30,
        "of it above weights + KV": (
            (memory["peak_bytes"] - worker.ready["allocated_bytes"]) / 2**30
        ),
        "swapped GB": memory["swapped_bytes"] / 2**30,
        "pages swapped meanwhile": _count_swapped_pages() - swapped_before,
    }
    print(f"\n{format_rows([found])}", flush=True)
    return found


def measure_long_context(model: str, variant: str, threads: int, rounds: int) -> dict[str, Any]:
    """Decode at the longest context against memory speed; a long prefill against a short one."""
    config = GlmConfig.from_hf(model)
    max_model_len = config.max_position_embeddings
    # What workers keep free for starting, and a round more than there will be.
    context = max_model_len - max_model_len // 512 - 1 - (rounds + 2) * _NEW_TOKENS
    limits = Limits(threads, config.vocab_size, 1, max_model_len)
    contestant = Contestant(OURS, variant, sys.executable, model)
    read, gemm = ReadProbe(1 << 30), GemmProbe()
    with start_worker(contestant, limits, "default") as worker:
        (decode,) = measure(Shape(1, context, _NEW_TOKENS), [worker], config, read, rounds)
        (short,) = measure(Shape(0, 512), [worker], config, gemm, rounds)
        (long,) = measure(Shape(0, 8192), [worker], config, gemm, rounds)
    found = {
        "format": variant,
        "context": context,
        **_describe_decode(decode),
        "prefill of 512, ms a token": short.seconds_per_token * 1e3,
        "of 8192": long.seconds_per_token * 1e3,
        "ratio": long.seconds_per_token / short.seconds_per_token,
    }
    print(f"\n{format_rows([found])}", flush=True)
    return found


def _describe_decode(series: Series) -> dict[str, float]:
    return {
        "ms a token": series.seconds * 1e3,
        "GB a token": series.work / 1e9,
        "read GB/s": series.limit_per_s / 1e9,
        "time over limit": 1 / series.fraction_of_limit,
    }


def _count_swapped_pages() -> int:
    """Pages that the machine has moved to and from swap since its start."""
    fields = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(fields["pswpin"]) + int(fields["pswpout"])
