"""What part of a decode step is not spent in kernels?

Decodes one sequence on a slice of true GLM-4-9B shape (make_slice.py) under several sampling
settings and splits each step's time: inside the operators (counted by the library itself), in the
graph calls around them, and in each stage of the engine. Two random checkpoints of 4 and 40 narrow
layers give the cost of a layer's operator calls; from both follows the share at the 9B's 40 layers.

    python scripts/bench/bench_step_overhead.py DIR [--steps 60] [--context 512]

The limit is 3 % at 40 layers; exit code 1 if a line is above it.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from machine import describe_machine
from make_slice import MODELS, write_slice
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.engine import llm_engine
from mindformers_glm.kernels.cpu import library

NUM_LAYERS = 40  # of GLM-4-9B
LIMIT = 0.03
SETTINGS = {
    "greedy": {"do_sample": False},
    "temperature": {"temperature": 0.8, "top_k": 0},
    "top_k 50": {"temperature": 0.8, "top_k": 50},
    "top_k 50, top_p 0.8": {"temperature": 0.8, "top_k": 50, "top_p": 0.8},
    "top_p 0.8": {"temperature": 0.8, "top_k": 0, "top_p": 0.8},
    "top_p 0.95, penalty": {"top_k": 0, "top_p": 0.95, "repetition_penalty": 1.1},
}
STAGES = ("schedule", "batch", "model", "head", "sample", "text")
_NARROW = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "head_dim": 32,
}


class Stopwatch:
    """Wall time and kernel time of named stages, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._now: defaultdict[str, float] = defaultdict(float)

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time counted to `stage`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            library.take_kernel_time()
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self._now[stage] += time.perf_counter() - begin
            self._now[f"{stage} kernels"] += library.take_kernel_time()[0]
            return result

        return timed

    def end_step(self, seconds: float) -> None:
        self.steps.append(dict(self._now) | {"step": seconds})
        self._now.clear()

    def median(self, stage: str) -> float:
        return float(np.median([step.get(stage, 0.0) for step in self.steps]))


@contextmanager
def watched(llm: LLM) -> Iterator[Stopwatch]:
    """Times the stages of the engine's step."""
    watch = Stopwatch()
    engine = llm._engine
    runner, scheduler = engine.runner, engine.scheduler
    network = runner.network
    run, schedule = runner._run, scheduler.schedule
    build_batch, sample_token = llm_engine.build_batch, llm_engine.sample_token
    add_text = llm_engine._Request.add_text

    def timed_run(cell: Any, tensors: Any) -> Any:
        stage = "head" if cell is network.logits_head else "model"
        # The engine waits for the graph right after: the wait belongs to it.
        return watch.wrap(stage, lambda: _wait(run(cell, tensors)))()

    runner._run = timed_run
    scheduler.schedule = watch.wrap("schedule", schedule)
    llm_engine.build_batch = watch.wrap("batch", build_batch)
    llm_engine.sample_token = watch.wrap("sample", sample_token)
    llm_engine._Request.add_text = watch.wrap("text", add_text)
    try:
        yield watch
    finally:
        runner._run, scheduler.schedule = run, schedule
        llm_engine.build_batch, llm_engine.sample_token = build_batch, sample_token
        llm_engine._Request.add_text = add_text


def _wait(output: Any) -> Any:
    output.asnumpy()
    return output


def measure(llm: LLM, context: int, num_steps: int, settings: dict[str, Any]) -> Stopwatch:
    """Decode `num_steps` tokens after a prompt of `context`."""
    prompt = np.random.default_rng(0).integers(0, llm.config.vocab_size, context).tolist()
    params = SamplingParams(
        max_new_tokens=num_steps + 5, ignore_eos=True, **({"seed": 1} | settings)
    )
    engine = llm._engine
    engine.add_request("x", prompt, params)
    while not any(output.token_ids for output in engine.step()):
        pass
    engine.step()
    with watched(llm) as watch:
        for _ in range(num_steps):
            begin = time.perf_counter()
            engine.step()
            watch.end_step(time.perf_counter() - begin)
    engine.abort("x")
    return watch


def measure_graph_calls(folder: Path, num_layers: int, num_steps: int) -> float:
    """Seconds around the operators in one call of the model graph with `num_layers` layers."""
    target = folder / f"narrow{num_layers}"
    MODELS["narrow"] = MODELS["9b"] | _NARROW
    write_slice(target, "narrow", num_layers, seed=0)
    _write_tokenizer(target)
    with LLM(target, max_num_seqs=1, max_model_len=2048, prompt_lookup_num_tokens=0) as llm:
        watch = measure(llm, 64, num_steps, SETTINGS["greedy"])
    return watch.median("model") - watch.median("model kernels")


def _write_tokenizer(folder: Path) -> None:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def main() -> int:
    """Print one table; return 1 if a line is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a slice of make_slice.py, with a tokenizer")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()

    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        few, many = (measure_graph_calls(Path(folder), n, 200) for n in (4, NUM_LAYERS))
    per_layer = (many - few) / (NUM_LAYERS - 4)
    print(
        f"mindspore {mindspore.__version__}, {library.isa()}; narrow layers: around the operators "
        f"{few * 1e3:.2f} ms at 4 layers, {many * 1e3:.2f} ms at {NUM_LAYERS}, "
        f"{per_layer * 1e6:.0f} us a layer"
    )
    llm = LLM(args.folder, max_num_seqs=1, max_model_len=2048, prompt_lookup_num_tokens=0)
    num_layers = llm.config.num_hidden_layers
    print(
        f"{args.folder.name}: {num_layers} layers, one sequence, context {args.context}, "
        f"{llm.settings.params_dtype}; medians in ms of {args.steps} steps; model and head: "
        "what is around their operators"
    )
    names = " ".join(f"{stage:>8}" for stage in (*STAGES, "other"))
    print(f"{'':>20} {'step':>8} {'kernels':>8} {names} {'share':>6} {'at 40':>6}")
    is_kept = True
    for name, settings in SETTINGS.items():
        watch = measure(llm, args.context, args.steps, settings)
        # Layers of true size push the graph's own data out of the caches.
        slowdown = max(1.0, (watch.median("model") - watch.median("model kernels")) / few)
        is_kept &= report(name, watch, num_layers, per_layer * slowdown)
    return 0 if is_kept else 1


def report(name: str, watch: Stopwatch, num_layers: int, layer_seconds: float) -> bool:
    """Print one line; return whether the share at 40 layers is within the limit."""
    step = watch.median("step")
    in_model, in_head = watch.median("model kernels"), watch.median("head kernels")
    parts = {stage: watch.median(stage) for stage in STAGES}
    parts["model"] -= in_model
    parts["head"] -= in_head
    parts["other"] = step - in_model - in_head - sum(parts.values())
    outside = step - in_model - in_head
    outside_40 = outside + (NUM_LAYERS - num_layers) * layer_seconds
    kernels_40 = in_model * NUM_LAYERS / num_layers + in_head
    share_40 = outside_40 / (outside_40 + kernels_40)
    shown = " ".join(f"{parts[stage] * 1e3:8.2f}" for stage in (*STAGES, "other"))
    print(
        f"{name:>20} {step * 1e3:8.2f} {(in_model + in_head) * 1e3:8.2f} {shown} "
        f"{outside / step:6.1%} {share_40:6.1%}"
    )
    return share_40 < LIMIT


if __name__ == "__main__":
    raise SystemExit(main())
