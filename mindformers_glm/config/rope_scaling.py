"""RoPE scaled to a longer context than the model was trained for, as config.json asks for it.

GLM-4-0414's model cards give `{"type": "yarn", "factor": 4.0, "original_max_position_embeddings":
32768}`. The context is then factor times the original one, whether or not the user also raised
max_position_embeddings (vLLM and transformers 5 read it so; transformers 4.51.3 takes the ratio of
the two for the factor, so it scales nothing unless max_position_embeddings was raised).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindformers_glm.config.json_keys import read_float, read_int
from mindformers_glm.core.errors import ConfigError, UnsupportedError

# Keys of the block that plain RoPE has too; config/glm_keys.py reads the values.
PLAIN_ROPE_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_MAX_SIZE = 2**31 - 1
_YARN_KEYS = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
)


@dataclass(frozen=True)
class RopeScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071) with every default resolved.

    factor: how many times longer the context becomes.
    attention_factor: what cosines and sines are multiplied by.
    beta_fast, beta_slow: turns within the original context from which on a pair of columns keeps
        its frequency, and up to which its frequency is divided by `factor`.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float
    beta_slow: float

    def __post_init__(self) -> None:
        if not 1 <= self.factor <= _MAX_SIZE:
            raise ConfigError(f"factor of YaRN must be from 1 to {_MAX_SIZE}, it is {self.factor}")
        if not 1 <= self.original_max_position_embeddings <= _MAX_SIZE:
            raise ConfigError(
                f"original_max_position_embeddings must be from 1 to {_MAX_SIZE}, it is "
                f"{self.original_max_position_embeddings}"
            )
        for name in ("attention_factor", "beta_fast", "beta_slow"):
            number = getattr(self, name)
            if not (math.isfinite(number) and number > 0):
                raise ConfigError(f"{name} of YaRN must be a positive number, it is {number}")
        if self.beta_fast < self.beta_slow:
            raise ConfigError(
                f"beta_fast={self.beta_fast} of YaRN must not be less than "
                f"beta_slow={self.beta_slow}"
            )

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of the extended context."""
        return int(self.original_max_position_embeddings * self.factor)


def read_rope_scaling(
    settings: Mapping[str, Any], block: str, max_position_embeddings: int
) -> RopeScaling | None:
    """Read a rope_scaling or rope_parameters block; None: plain RoPE.

    Args:
        block: its name, for errors.
        max_position_embeddings: what config.json says, the original context or the extended one.
    Raises:
        UnsupportedError: another kind of scaling, or a key that its kind does not have.
        ConfigError: a value is missing or wrong, or contradicts max_position_embeddings.
    """
    kind = _read_kind(settings, block)
    if kind not in ("default", "yarn"):
        raise UnsupportedError(
            f"{block} asks for RoPE of type {kind!r}, this version has plain RoPE and 'yarn': "
            f"remove {block} to stay within max_position_embeddings"
        )
    known = PLAIN_ROPE_KEYS + (_YARN_KEYS if kind == "yarn" else ())
    unknown = [key for key in settings if key not in known]
    if unknown:
        name = "YaRN" if kind == "yarn" else "plain RoPE"
        raise UnsupportedError(f"{block} has {unknown[0]!r}, which {name} does not know here")
    return _read_yarn(settings, block, max_position_embeddings) if kind == "yarn" else None


def _read_kind(settings: Mapping[str, Any], block: str) -> Any:
    kinds = [settings[key] for key in ("rope_type", "type") if settings.get(key) is not None]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise ConfigError(f"{block} has rope_type {kinds[0]!r} and type {kinds[1]!r}: keep one")
    return kinds[0] if kinds else "default"


def _read_yarn(
    settings: Mapping[str, Any], block: str, max_position_embeddings: int
) -> RopeScaling:
    given = {key: value for key, value in settings.items() if value is not None}
    factor = read_float(given, "factor")
    original = max_position_embeddings
    if "original_max_position_embeddings" in given:
        original = read_int(given, "original_max_position_embeddings")
    # Source of the three defaults: transformers 4.51.3, `_compute_yarn_parameters`.
    defaults = {
        "attention_factor": 0.1 * math.log(factor) + 1.0 if factor >= 1 else 1.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    constants = {
        key: read_float(given, key) if key in given else value for key, value in defaults.items()
    }
    scaling = RopeScaling("yarn", factor, original, **constants)
    if max_position_embeddings not in (original, scaling.max_position_embeddings):
        raise ConfigError(
            f"max_position_embeddings={max_position_embeddings} is neither the {original} that "
            f"{block} extends nor the {scaling.max_position_embeddings} that factor {factor:g} "
            "makes of it: make them agree"
        )
    return scaling
