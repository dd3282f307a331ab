"""KV-cache blocks for a given model on this machine: what it needs against what there is."""

from collections.abc import Mapping, Sequence

from mindformers_glm.backends.cpu.footprint import (
    count_kv_block_bytes,
    count_quantized_weight_bytes,
    count_weight_bytes,
    count_workspace_bytes,
)
from mindformers_glm.backends.cpu.host_share import HostShare
from mindformers_glm.backends.runner import ModelRunner
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import can_split
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.engine.memory import MemoryDemand, MemorySupply, plan_kv_blocks

_MODEL_PARALLEL = (2, 4, 8, 16)  # what is advised where one rank's cap is too low


def check_memory_before_loading(
    config: GlmConfig, settings: RunnerSettings, cap_bytes: int | None, host: HostShare
) -> None:
    """Refuse a model that cannot fit, from its config alone and before the long work.

    Args:
        cap_bytes: what each rank may take; None: its share of what there is.

    Raises:
        MemoryBudgetError: weights, workspace and one sequence's KV cache do not fit.
    """
    demand = _demand(
        settings,
        count_weight_bytes(config, settings),
        count_workspace_bytes(config, settings),
        count_kv_block_bytes(config, settings),
        count_quantized_weight_bytes(config, settings),
        [size for size in _MODEL_PARALLEL if can_split(config, size)],
    )
    plan_kv_blocks(demand, MemorySupply(cap_bytes, host.available_memory()))


def plan_kv_blocks_of(
    runner: ModelRunner, settings: RunnerSettings, cap_bytes: int | None, host: HostShare
) -> int:
    """Return how many KV-cache blocks a loaded runner may have: the same on every rank.

    Raises:
        MemoryBudgetError: not even one sequence of max_model_len fits.
    """
    # The weights are loaded: advice to quantize them came before, if at all.
    demand = _demand(
        settings, runner.weights_bytes, runner.workspace_bytes, runner.kv_block_bytes, {}, []
    )
    # The weights are in memory now, those of a mapped file not for good.
    own_bytes = runner.weights_bytes - runner.mapped_weight_bytes
    available = host.available_memory(own_bytes)
    return host.group.least(plan_kv_blocks(demand, MemorySupply(cap_bytes, available)))


def _demand(
    settings: RunnerSettings,
    weights_bytes: int,
    workspace_bytes: int,
    kv_block_bytes: int,
    weights_bytes_by_scheme: Mapping[str, int],
    model_parallel_sizes: Sequence[int],
) -> MemoryDemand:
    return MemoryDemand(
        weights_bytes=weights_bytes,
        workspace_bytes=workspace_bytes,
        kv_block_bytes=kv_block_bytes,
        block_size=settings.block_size,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        params_dtype=settings.params_dtype,
        quantization=settings.quantization,
        weights_bytes_by_scheme=weights_bytes_by_scheme,
        model_parallel=settings.model_parallel,
        larger_model_parallel=tuple(
            size for size in model_parallel_sizes if size > settings.model_parallel
        ),
    )
