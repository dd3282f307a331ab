"""The sizes the engine schedules with."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mindformers_glm.config.runner_settings import SETTING_NAMES, RunnerSettings
from mindformers_glm.core.errors import ConfigError

# The last are switches: False is 0.
_MAY_BE_ZERO = (
    *("seed", "prompt_lookup_num_tokens", "prefill_tokens_beside_decode"),
    *("enable_prefix_caching", "tells_prompts_apart"),
)


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine.

    max_num_seqs: most sequences that hold KV-cache blocks at the same time.
    max_num_batched_tokens: most rows of one step, prefill and decode together.
    max_model_len: most tokens of prompt and answer together.
    num_blocks: KV-cache blocks of `block_size` tokens each.
    seed: draws of requests without their own seed follow from it.
    prompt_lookup_num_tokens: most tokens that a step guesses ahead; 0: none.
    prefill_tokens_beside_decode: most rows of prompts in a step that goes on with fewer answers
        than that; 0: prompts fill every step, first come, first served.
    enable_prefix_caching: sequences that begin alike share the KV-cache blocks of the beginning.
    model_parallel: processes that sample the same rows, each for itself.
    tells_prompts_apart: a generated token's K and V are not those of the same token in a prompt.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    seed: int
    prompt_lookup_num_tokens: int = 0
    prefill_tokens_beside_decode: int = 0
    enable_prefix_caching: bool = True
    model_parallel: int = 1
    tells_prompts_apart: bool = False

    @classmethod
    def for_runner(
        cls, settings: RunnerSettings, num_blocks: int, given: Mapping[str, Any]
    ) -> "EngineConfig":
        """Limits that a runner is built for, and the engine's own settings (`ENGINE_SETTINGS`)."""
        shared = {name: value for name, value in vars(settings).items() if name in _FIELDS}
        return cls(
            num_blocks=num_blocks,
            tells_prompts_apart=settings.tells_prompts_apart,
            **shared,
            **given,
        )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in _MAY_BE_ZERO else 1
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}.")


_FIELDS = tuple(field.name for field in fields(EngineConfig))
# What the engine alone is given; the rest a runner must know too.
_FOUND = ("num_blocks", "tells_prompts_apart")
ENGINE_SETTINGS = tuple(name for name in _FIELDS if name not in (*SETTING_NAMES, *_FOUND))
