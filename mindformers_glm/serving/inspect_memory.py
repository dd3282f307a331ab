"""What a checkpoint needs in memory in every format and split, and whether it fits here."""

from dataclasses import replace
from typing import Any

from mindformers_glm.backends import Backend, MemoryNeed
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import can_split
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import MemoryBudgetError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.quantization_scheme import SCHEMES
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.memory_plan import MemorySupply, plan_kv_blocks, predict_demand
from mindformers_glm.system.sizes import format_bytes

_RANKS = (1, 2, 4, 8)
_COLUMN_WIDTH = 12


def describe_memory(
    backend: Backend, config: GlmConfig, settings: RunnerSettings
) -> list[tuple[str, str]]:
    """A table of the weights and the KV cache of one rank, and what this machine can take.

    Args:
        backend: whose network it is.
        settings: as a run without further settings would have them.
    """
    ranks = [size for size in _RANKS if can_split(config, size)]

    def need(size: int, **changes: Any) -> MemoryNeed:
        return backend.memory_need(config, replace(settings, model_parallel=size, **changes))

    def weights(**changes: Any) -> list[str]:
        needs = (need(size, **changes) for size in ranks)
        return [format_bytes(one.weights_bytes) for one in needs]

    blocks = [need(size).kv_block_bytes for size in ranks]
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
    return [
        *((name, value.rstrip()) for name, value in lines),
        _describe_fit(backend, config, settings),
    ]


def _describe_fit(backend: Backend, config: GlmConfig, settings: RunnerSettings) -> tuple[str, str]:
    demand = predict_demand(backend, config, settings)
    available = backend.available_memory(ProcessGroup(TensorParallel()))
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
