"""What a checkpoint needs in memory in every format and split, and whether it fits here."""

from dataclasses import replace
from typing import Any

from mindformers_glm.backends.cpu.footprint import (
    count_kv_block_bytes,
    count_quantized_weight_bytes,
    count_weight_bytes,
    count_workspace_bytes,
)
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import can_split
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import MemoryBudgetError
from mindformers_glm.core.quantization_scheme import SCHEMES
from mindformers_glm.engine.memory import MemoryDemand, MemorySupply, plan_kv_blocks
from mindformers_glm.system.host_memory import read_available_memory

_RANKS = (1, 2, 4, 8)
_COLUMN_WIDTH = 12
_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def describe_memory(config: GlmConfig, settings: RunnerSettings) -> list[tuple[str, str]]:
    """A table of the weights and the KV cache of one rank, and what this machine can take.

    Args:
        settings: as a run without further settings would have them.
    """
    ranks = [size for size in _RANKS if can_split(config, size)]

    def weights(**changes: Any) -> list[str]:
        kept = replace(settings, **changes)
        return [
            format_bytes(count_weight_bytes(config, replace(kept, model_parallel=size)))
            for size in ranks
        ]

    blocks = [
        count_kv_block_bytes(config, replace(settings, model_parallel=size)) for size in ranks
    ]
    rows = [
        ("model_parallel", [str(size) for size in ranks]),
        *(
            (f"weights in {dtype}", weights(params_dtype=dtype, compute_dtype=dtype))
            for dtype in DTYPE_BYTES
        ),
        *((f"weights in {scheme}", weights(quantization=scheme)) for scheme in SCHEMES),
        (
            f"KV cache a token in {settings.kv_cache_dtype}",
            [format_bytes(num_bytes // settings.block_size) for num_bytes in blocks],
        ),
    ]
    lines = [(name, "".join(f"{size:<{_COLUMN_WIDTH}}" for size in sizes)) for name, sizes in rows]
    return [*((name, value.rstrip()) for name, value in lines), _describe_fit(config, settings)]


def format_bytes(num_bytes: int) -> str:
    """Write a size for people: "17.51 GiB"."""
    for size, unit in _UNITS:
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} bytes"


def _describe_fit(config: GlmConfig, settings: RunnerSettings) -> tuple[str, str]:
    demand = MemoryDemand(
        weights_bytes=count_weight_bytes(config, settings),
        workspace_bytes=count_workspace_bytes(config, settings),
        kv_block_bytes=count_kv_block_bytes(config, settings),
        block_size=settings.block_size,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        params_dtype=settings.params_dtype,
        weights_bytes_by_scheme=count_quantized_weight_bytes(config, settings),
    )
    available = read_available_memory()
    try:
        plan_kv_blocks(demand, MemorySupply(None, available))
    except MemoryBudgetError as problem:
        return "this machine", f"cannot run it as it is: {problem}"
    there_is = "an unknown amount" if available is None else format_bytes(available)
    return (
        "this machine",
        f"runs it in {settings.params_dtype}: {format_bytes(demand.least_bytes)} of {there_is} "
        f"available, for one sequence of {settings.max_model_len} tokens",
    )
