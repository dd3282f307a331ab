"""The architecture of a GLM-4-0414 checkpoint, read from its config.json and from nothing else.

Hugging Face's `Glm4Config` fills missing keys with the values of an older 9B model, so a default
taken from there gives a network that runs and answers nonsense. Here a missing key is an error.
Both styles are read: transformers 4 (`rope_theta`, `torch_dtype`) and transformers 5
(`rope_parameters`, `dtype`). Read: transformers 4.51.3 and 5.23.0, `Glm4Config`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.config.files import read_json_object, require_folder
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import ConfigError, UnsupportedError

# model_type -> the one architecture of it that generates text.
ARCHITECTURES = {"glm4": "Glm4ForCausalLM"}

_RELATIVES = ("chatglm", "glm", "glm4_moe", "glm4_moe_lite", "glm4v", "glm4v_text", "glm_ocr")
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
_MAX_SIZE = 2**31 - 1  # the kernels index with int32

_QUANTIZED = (
    "quantized checkpoints are not supported by this version: use the float checkpoint, which the "
    "setting quantization can quantize while it is loaded"
)
# Keys that change the network and that this version cannot honour; null, false and empty are fine.
_REFUSED_KEYS = {
    "quantization_config": _QUANTIZED,
    "quantize": _QUANTIZED,
    "sliding_window": "GLM-4-0414 attends to the whole context",
}
# Every layer's tensors are listed by name; the largest GLM has 92 layers.
_MOST_LAYERS = 1000
_PLAIN_ROPE_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class GlmConfig:
    """Sizes and constants of the network, by their Hugging Face names.

    torch_dtype: the type config.json states; None when it states none, which means "as stored"
        (`Checkpoint.dtype` tells). Hugging Face would widen to float32 then: twice the memory.
    eos_token_ids: may be empty, generation_config.json can hold them instead.
    """

    model_type: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    attention_bias: bool
    tie_word_embeddings: bool
    hidden_act: str
    torch_dtype: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None

    def __post_init__(self) -> None:
        """Check what the values must satisfy together."""
        for name in _SIZES:
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ConfigError(
                    f"{name} must be from 1 to {_MAX_SIZE}, it is {getattr(self, name)}"
                )
        if self.num_hidden_layers > _MOST_LAYERS:
            raise ConfigError(
                f"num_hidden_layers must be at most {_MOST_LAYERS}, it is {self.num_hidden_layers}"
            )
        for name in ("rms_norm_eps", "rope_theta", "partial_rotary_factor"):
            number = getattr(self, name)
            if not (math.isfinite(number) and number > 0):
                raise ConfigError(f"{name} must be a positive number, it is {number}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.partial_rotary_factor > 1 or self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(
                f"RoPE rotates pairs: head_dim={self.head_dim} times partial_rotary_factor="
                f"{self.partial_rotary_factor} must give an even number from 2 to head_dim"
            )
        if self.hidden_act != "silu":
            raise UnsupportedError(f"hidden_act must be 'silu', it is {self.hidden_act!r}")
        if self.torch_dtype is not None and self.torch_dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"torch_dtype must be one of {', '.join(DTYPE_BYTES)}, it is {self.torch_dtype!r}"
            )

    @property
    def rotary_dim(self) -> int:
        """Columns of a head that RoPE rotates; truncated as Hugging Face does."""
        return int(self.head_dim * self.partial_rotary_factor)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes one token takes in the KV cache of all layers, keys and values in `dtype`."""
        per_layer = 2 * self.num_key_value_heads * self.head_dim * DTYPE_BYTES[dtype]
        return self.num_hidden_layers * per_layer

    @classmethod
    def from_hf(cls, folder: str | Path) -> "GlmConfig":
        """Read `config.json` of a Hugging Face folder.

        Raises:
            ConfigError: the folder or file is missing or broken, or a key is missing or wrong.
            UnsupportedError: it describes a model that this version cannot run.
        """
        path = require_folder(folder, ConfigError) / "config.json"
        if not path.exists():
            raise ConfigError(
                f"{path.parent} has no config.json: give a Hugging Face folder as downloaded."
            )
        return cls.from_dict(read_json_object(path, ConfigError), str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str) -> "GlmConfig":
        """Build the config from a parsed config.json.

        Args:
            source: what the errors call it, e.g. the file's path.
        """
        try:
            return cls(**_read_fields(raw))
        except (ConfigError, UnsupportedError) as problem:
            raise type(problem)(f"{source}: {problem}.") from None


def _read_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    model_type, architecture = _read_model(raw)
    for key, reason in _REFUSED_KEYS.items():
        # Qwen-style files carry a sliding_window that use_sliding_window switches off.
        is_off = key == "sliding_window" and raw.get("use_sliding_window") is False
        if raw.get(key) and not is_off:
            raise UnsupportedError(f"it has {key!r}, but {reason}")
    rope_theta, partial_rotary_factor = _read_rope(raw)
    return {
        "model_type": model_type,
        "architecture": architecture,
        **{name: _read_int(raw, name) for name in _SIZES},
        "rms_norm_eps": _read_float(raw, "rms_norm_eps"),
        "rope_theta": rope_theta,
        "partial_rotary_factor": partial_rotary_factor,
        "attention_bias": _read_bool(raw, "attention_bias"),
        # The one default: every GLM-4-0414 is untied and so is Glm4Config (both transformers write
        # the key always). A tied checkpoint without it fails on its missing lm_head.weight.
        "tie_word_embeddings": "tie_word_embeddings" in raw
        and _read_bool(raw, "tie_word_embeddings"),
        "hidden_act": _read_str(raw, "hidden_act"),
        "torch_dtype": _read_dtype(raw),
        "eos_token_ids": _read_token_ids(raw, "eos_token_id"),
        "bos_token_id": next(iter(_read_token_ids(raw, "bos_token_id")), None),
        "pad_token_id": next(iter(_read_token_ids(raw, "pad_token_id")), None),
    }


def _read_model(raw: Mapping[str, Any]) -> tuple[str, str]:
    model_type = _read_str(raw, "model_type")
    known = ", ".join(ARCHITECTURES)
    if model_type in _RELATIVES:
        raise UnsupportedError(
            f"model_type {model_type!r} is a relative that this version does not run yet; "
            f"it runs: {known}"
        )
    if model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"model_type {model_type!r} is not known; this version runs: {known}"
        )
    architecture = ARCHITECTURES[model_type]
    # A config saved without its model has no architectures: model_type says enough then.
    found = raw.get("architectures") or [architecture]
    if found != [architecture]:
        raise UnsupportedError(f"architectures must be [{architecture!r}], it is {found!r}")
    return model_type, architecture


def _read_rope(raw: Mapping[str, Any]) -> tuple[float, float]:
    """Return (rope_theta, partial_rotary_factor) from either style, or both where they agree."""
    rope = dict(raw)
    for block in ("rope_scaling", "rope_parameters"):
        settings = raw.get(block)
        if settings is None:
            continue
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{block} must be an object or null, it is {settings!r}")
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default":
            raise UnsupportedError(
                f"{block} asks for RoPE of type {kind!r}, this version has the plain one only: "
                f"remove {block} to stay within max_position_embeddings"
            )
        unknown = [key for key in settings if key not in _PLAIN_ROPE_KEYS]
        if unknown:
            raise UnsupportedError(f"{block} has {unknown[0]!r}, which plain RoPE does not know")
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in settings and rope.get(key) not in (None, settings[key]):
                raise ConfigError(
                    f"{key} is {rope[key]!r} at the top and {settings[key]!r} in {block}: "
                    "make them agree"
                )
            rope[key] = settings.get(key, rope.get(key))
    return _read_float(rope, "rope_theta"), _read_float(rope, "partial_rotary_factor")


def _read_dtype(raw: Mapping[str, Any]) -> str | None:
    key = "dtype" if raw.get("dtype") is not None else "torch_dtype"  # transformers 5 writes dtype
    return None if raw.get(key) is None else _read_str(raw, key)


def _read_token_ids(raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    found = raw.get(key)
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if any(type(token_id) is not int or token_id < 0 for token_id in ids):
        raise ConfigError(f"{key} must be a token id, a list of token ids or null, it is {found!r}")
    return tuple(ids)


def _read_int(raw: Mapping[str, Any], key: str) -> int:
    return _read(raw, key, (int,), "a whole number")


def _read_float(raw: Mapping[str, Any], key: str) -> float:
    number = _read(raw, key, (int, float), "a number")
    try:
        return float(number)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _read_bool(raw: Mapping[str, Any], key: str) -> bool:
    return _read(raw, key, (bool,), "true or false")


def _read_str(raw: Mapping[str, Any], key: str) -> str:
    return _read(raw, key, (str,), "a text")


def _read(raw: Mapping[str, Any], key: str, types: tuple[type, ...], wanted: str) -> Any:
    if raw.get(key) is None:
        raise ConfigError(
            f"the key {key!r} is missing; nothing is guessed here, so take it from the model's "
            "original config.json"
        )
    if type(raw[key]) not in types:  # not isinstance: True is an int to Python
        raise ConfigError(f"{key} must be {wanted}, it is {raw[key]!r}")
    return raw[key]
