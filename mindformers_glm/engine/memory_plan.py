"""KV-cache blocks for a given model on this machine: what it needs against what there is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mindformers_glm.backends import Backend, MemoryNeed, ModelRunner
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import can_split
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import MemoryBudgetError, UnsupportedError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.quantization_scheme import SCHEMES
from mindformers_glm.system.sizes import format_bytes

_MODEL_PARALLEL = (2, 4, 8, 16)  # what is advised where one rank's cap is too low


@dataclass(frozen=True)
class MemoryDemand:
    """What a model needs, and the settings it follows from.

    need: of one of the ranks.
    weights_bytes_by_scheme: what need.weights_bytes would be with each scheme, the mildest first;
        it and the following are for the advice only.
    larger_model_parallel: other numbers of ranks that can split the model, ascending.
    """

    need: MemoryNeed
    settings: RunnerSettings
    weights_bytes_by_scheme: Mapping[str, int] = field(default_factory=dict)
    larger_model_parallel: tuple[int, ...] = ()

    @property
    def kv_bytes(self) -> int:
        """KV cache of one sequence of max_model_len."""
        return self.settings.max_blocks_per_seq * self.need.kv_block_bytes

    @property
    def fixed_bytes(self) -> int:
        """What is needed besides the KV cache."""
        return self.need.weights_bytes + self.need.workspace_bytes

    @property
    def least_bytes(self) -> int:
        """Memory without which not even one sequence of max_model_len runs."""
        return self.fixed_bytes + self.kv_bytes


@dataclass(frozen=True)
class MemorySupply:
    """What there is for weights, workspace and KV cache together; None means no such limit.

    cap_bytes: what `max_device_memory` allows.
    available_bytes: what the machine has, the weights included if they are loaded already.
    is_for_each_rank: whether every rank has as much, as with a card each; else they share it.
    """

    cap_bytes: int | None
    available_bytes: int | None
    is_for_each_rank: bool = False

    @property
    def bytes(self) -> int | None:
        """The smaller of both."""
        limits = [limit for limit in (self.cap_bytes, self.available_bytes) if limit is not None]
        return min(limits, default=None)


def check_memory_before_loading(
    backend: Backend,
    config: GlmConfig,
    settings: RunnerSettings,
    cap_bytes: int | None,
    group: ProcessGroup,
) -> None:
    """Refuse a model that cannot fit, from its config alone and before the long work.

    Args:
        cap_bytes: what each rank may take; None: its share of what there is.
    Raises:
        MemoryBudgetError: weights, workspace and one sequence's KV cache do not fit.
    """
    demand = predict_demand(backend, config, settings)
    available = backend.available_memory(group)
    plan_kv_blocks(demand, MemorySupply(cap_bytes, available, backend.has_memory_for_each_rank))


def plan_kv_blocks_of(
    backend: Backend,
    runner: ModelRunner,
    settings: RunnerSettings,
    cap_bytes: int | None,
    group: ProcessGroup,
) -> int:
    """Return how many KV-cache blocks a loaded runner may have: the same on every rank.

    Raises:
        MemoryBudgetError: not even one sequence of max_model_len fits.
    """
    # The weights are loaded: advice to quantize or split them came before, if at all.
    need = MemoryNeed(runner.weights_bytes, runner.workspace_bytes, runner.kv_block_bytes)
    # The weights are in memory now, those of a mapped file not for good.
    own_bytes = runner.weights_bytes - runner.mapped_weight_bytes
    supply = MemorySupply(cap_bytes, backend.available_memory(group, own_bytes))
    try:
        num_blocks = plan_kv_blocks(MemoryDemand(need, settings), supply)
    except MemoryBudgetError:
        group.least(0)  # the others wait for an answer
        raise
    if (least := group.least(num_blocks)) == 0:
        raise MemoryBudgetError("Another rank of this job has too little memory; its log says why.")
    return least


def predict_demand(backend: Backend, config: GlmConfig, settings: RunnerSettings) -> MemoryDemand:
    """What a model will need, and what it would need otherwise, from its config alone."""
    quantized = {
        name: replace(settings, quantization=name, quantization_group_size=None)
        for name in (SCHEMES if settings.stored_schemes is None else ())
    }
    by_scheme = {
        name: backend.memory_need(config, changed).weights_bytes
        for name, changed in quantized.items()
        if _can_run(backend, config, changed)
    }
    sizes = (size for size in _MODEL_PARALLEL if size > settings.model_parallel)
    larger = tuple(
        size
        for size in sizes
        if can_split(config, size)
        and _can_run(backend, config, replace(settings, model_parallel=size))
    )
    return MemoryDemand(backend.memory_need(config, settings), settings, by_scheme, larger)


def _can_run(backend: Backend, config: GlmConfig, settings: RunnerSettings) -> bool:
    try:
        backend.check_supported(config, settings)
    except UnsupportedError:
        return False
    return True


def plan_kv_blocks(demand: MemoryDemand, supply: MemorySupply) -> int:
    """Return how many KV-cache blocks to allocate.

    As many as max_num_seqs sequences of max_model_len can use, or as many as fit.

    Raises:
        MemoryBudgetError: not even one sequence of max_model_len fits.
    """
    usable_blocks = demand.settings.max_num_seqs * demand.settings.max_blocks_per_seq
    if supply.bytes is None:
        return usable_blocks
    if demand.least_bytes > supply.bytes:
        raise MemoryBudgetError(_explain_shortage(demand, supply))
    return min(usable_blocks, (supply.bytes - demand.fixed_bytes) // demand.need.kv_block_bytes)


def _explain_shortage(demand: MemoryDemand, supply: MemorySupply) -> str:
    need, settings = demand.need, demand.settings
    is_capped = supply.bytes == supply.cap_bytes
    limit = (
        f"max_device_memory allows {format_bytes(supply.bytes or 0)}"
        if is_capped
        else f"{format_bytes(supply.bytes or 0)} of memory is available"
    )
    weights_type = settings.quantization or settings.params_dtype
    if settings.stored_schemes is not None:
        weights_type = f"the checkpoint's integers and {settings.params_dtype}"
    return (
        f"The model needs {format_bytes(demand.least_bytes)} "
        f"(weights {format_bytes(need.weights_bytes)} in {weights_type}, workspace "
        f"{format_bytes(need.workspace_bytes)}, KV cache {format_bytes(demand.kv_bytes)} for one "
        f"sequence of {settings.max_model_len} tokens), but {limit}: "
        f"{' or '.join(_list_remedies(demand, supply))}."
    )


def _list_remedies(demand: MemoryDemand, supply: MemorySupply) -> list[str]:
    """Return the settings that would fit, the mildest first."""
    need, settings = demand.need, demand.settings
    limit = supply.bytes or 0
    remedies = []
    blocks = (limit - demand.fixed_bytes) // need.kv_block_bytes
    if blocks > 0:
        remedies.append(f"set max_model_len to {blocks * settings.block_size} or less")
    is_quantized = settings.quantization is not None or settings.stored_schemes is not None
    is_float32 = settings.params_dtype == "float32" and not is_quantized
    if is_float32 and demand.least_bytes - need.weights_bytes // 2 <= limit:
        remedies.append("set params_dtype to bfloat16")
    room = limit - demand.least_bytes + need.weights_bytes
    schemes = [
        name
        for name, size in demand.weights_bytes_by_scheme.items()
        if size <= room and name != settings.quantization
    ]
    if schemes:
        remedies.append(f"set quantization to {schemes[0]}")
    if supply.available_bytes is None or demand.least_bytes <= supply.available_bytes:
        least_mib = -(-demand.least_bytes // 2**20)
        remedies.append(f"raise max_device_memory to {least_mib}MB or more")
    # The cap holds for each rank; what the machine has is shared by its ranks, unless each has a
    # card.
    is_for_each = supply.is_for_each_rank or supply.cap_bytes == limit
    sizes = demand.larger_model_parallel if is_for_each else ()
    needed = demand.least_bytes * settings.model_parallel  # of all ranks, about
    if fitting := [size for size in sizes if needed <= size * limit]:
        remedies.append(
            f"set model_parallel to {fitting[0]} (scripts/msrun_launcher.sh starts the processes)"
        )
    return remedies or ["use a machine with more memory or a smaller model"]
