"""What a checkpoint needs in memory in every format and split, and whether it fits here."""

from dataclasses import dataclass, replace
from typing import Any

from mindformers_glm.backends import (
    BACKENDS,
    Backend,
    MemoryNeed,
    default_target,
    find_backend,
)
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import can_split
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import GlmError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.quantization_scheme import SCHEMES
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.memory_plan import check_memory_before_loading, predict_demand
from mindformers_glm.system.sizes import format_bytes

_RANKS = (1, 2, 4, 8)
_COLUMN_WIDTH = 12


@dataclass(frozen=True)
class MemoryTable:
    """Bytes of one rank, for each number of ranks that can split the model.

    weights_bytes: by the type or scheme they are kept in.
    kv_cache_bytes_per_token: in the type of `settings`.
    """

    ranks: list[int]
    weights_bytes: dict[str, list[int]]
    kv_cache_bytes_per_token: list[int]
    kv_cache_dtype: str

    def lines(self) -> list[tuple[str, str]]:
        """The table for people."""
        rows = [
            ("model_parallel", list(map(str, self.ranks))),
            *(
                (f"weights in {name}", list(map(format_bytes, sizes)))
                for name, sizes in self.weights_bytes.items()
            ),
            (
                f"KV cache a token in {self.kv_cache_dtype}",
                list(map(format_bytes, self.kv_cache_bytes_per_token)),
            ),
        ]
        return [
            (name, "".join(f"{size:<{_COLUMN_WIDTH}}" for size in sizes).rstrip())
            for name, sizes in rows
        ]


def count_memory(backend: Backend, config: GlmConfig, settings: RunnerSettings) -> MemoryTable:
    """Count the weights and the KV cache of one rank of the backend's network.

    Args:
        settings: as a run without further settings would have them.
    """
    ranks = [size for size in _RANKS if can_split(config, size)]

    def need(size: int, **changes: Any) -> MemoryNeed:
        return backend.memory_need(config, replace(settings, model_parallel=size, **changes))

    def weights(**changes: Any) -> list[int]:
        return [need(size, **changes).weights_bytes for size in ranks]

    by_type = {dtype: weights(params_dtype=dtype, compute_dtype=dtype) for dtype in DTYPE_BYTES}
    by_scheme = {}
    if settings.stored_schemes is None:
        by_scheme = {scheme: weights(quantization=scheme) for scheme in SCHEMES}
    else:
        by_type = {f"integers, {dtype} else": sizes for dtype, sizes in by_type.items()}
    return MemoryTable(
        ranks,
        by_type | by_scheme,
        [need(size).kv_block_bytes // settings.block_size for size in ranks],
        settings.kv_dtype,
    )


@dataclass(frozen=True)
class Fit:
    """Whether this machine runs a model with some settings.

    obstacle: the sentence that a run would end with; None: it runs.
    least_bytes: of weights, workspace and one sequence; available_bytes: None where unknown.
    """

    obstacle: str | None
    params_dtype: str
    max_model_len: int
    least_bytes: int
    available_bytes: int | None

    @classmethod
    def find(
        cls,
        config: GlmConfig,
        settings: RunnerSettings,
        device_target: str | None,
        cap_bytes: int | None,
    ) -> "Fit":
        """Look before loading, as a run does.

        Args:
            device_target, cap_bytes: as the run has them.
        """
        obstacle = None
        backend = next(iter(BACKENDS.values()))
        group = ProcessGroup(TensorParallel())
        try:
            backend = find_backend(device_target or default_target())
            backend.check_supported(config, settings)
            check_memory_before_loading(backend, config, settings, cap_bytes, group)
        except GlmError as problem:
            obstacle = str(problem)
        return cls(
            obstacle,
            settings.params_dtype,
            settings.max_model_len,
            predict_demand(backend, config, settings).least_bytes,
            backend.available_memory(group),
        )

    def line(self) -> tuple[str, str]:
        """The same for people."""
        if self.obstacle is not None:
            return "this machine", f"cannot run it as it is: {self.obstacle}"
        there_is = (
            "an unknown amount"
            if self.available_bytes is None
            else format_bytes(self.available_bytes)
        )
        return (
            "this machine",
            f"runs it in {self.params_dtype}: {format_bytes(self.least_bytes)} of {there_is} "
            f"available, for one sequence of {self.max_model_len} tokens",
        )
