"""The keys of a GLM-4 (`glm`) or GLM-4-0414 (`glm4`) config.json, as Hugging Face writes them.

Hugging Face's `GlmConfig` and `Glm4Config` fill missing keys with the values of one 9B model, so a
default taken from there gives a network that runs and answers nonsense: here a missing key is an
error. Both styles are read: transformers 4 (`rope_theta`, `torch_dtype`) and transformers 5
(`rope_parameters`, `dtype`). Read: transformers 4.51.3 and 5.23.0.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mindformers_glm.config.json_keys import (
    SIZE_FIELDS,
    read_bool,
    read_float,
    read_int,
    read_shared_keys,
    read_text,
)
from mindformers_glm.config.rope_scaling import RopeScaling, read_rope_scaling
from mindformers_glm.core.errors import ConfigError, UnsupportedError


def read_glm_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of GlmConfig from a config.json of `glm` or `glm4`."""
    # Qwen-style files carry a sliding_window that use_sliding_window switches off.
    if raw.get("sliding_window") and raw.get("use_sliding_window") is not False:
        raise UnsupportedError("it has 'sliding_window', but GLM-4 attends to the whole context")
    if raw.get("vision_config"):
        raise UnsupportedError("it has 'vision_config': models that see images are not supported")
    sizes = {name: read_int(raw, name) for name in SIZE_FIELDS}
    rope_theta, partial_rotary_factor = _read_rope(raw)
    scaling = _read_scaling(raw, sizes["max_position_embeddings"])
    if scaling is not None:
        sizes["max_position_embeddings"] = scaling.max_position_embeddings
    return {
        **sizes,
        "rms_norm_eps": read_float(raw, "rms_norm_eps"),
        "rope_theta": rope_theta,
        "partial_rotary_factor": partial_rotary_factor,
        "rope_scaling": scaling,
        "attention_bias": read_bool(raw, "attention_bias"),
        # The one default: both configuration classes are untied, and both transformers write the
        # key always. A tied checkpoint without it fails on its missing lm_head.weight.
        "tie_word_embeddings": "tie_word_embeddings" in raw
        and read_bool(raw, "tie_word_embeddings"),
        "hidden_act": read_text(raw, "hidden_act"),
        **read_shared_keys(raw),
    }


def write_glm_keys(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that `read_glm_keys` reads back to `fields`; unset ones are left out."""
    keys = {name: value for name, value in fields.items() if value is not None}
    keys["eos_token_id"] = list(keys.pop("eos_token_ids"))
    keys["float_layers_id"] = list(keys["float_layers_id"])
    return keys


def _read_rope(raw: Mapping[str, Any]) -> tuple[float, float]:
    """Return (rope_theta, partial_rotary_factor) from either style, or both where they agree."""
    rope = dict(raw)
    for block, settings in _rope_blocks(raw):
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in settings and rope.get(key) not in (None, settings[key]):
                raise ConfigError(
                    f"{key} is {rope[key]!r} at the top and {settings[key]!r} in {block}: "
                    "make them agree"
                )
            rope[key] = settings.get(key, rope.get(key))
    return read_float(rope, "rope_theta"), read_float(rope, "partial_rotary_factor")


def _read_scaling(raw: Mapping[str, Any], max_position_embeddings: int) -> RopeScaling | None:
    """How RoPE is scaled; where both blocks are there, transformers too takes the one that does."""
    found = [
        scaling
        for block, settings in _rope_blocks(raw)
        if (scaling := read_rope_scaling(settings, block, max_position_embeddings)) is not None
    ]
    if len(set(found)) > 1:
        raise ConfigError("rope_scaling and rope_parameters scale RoPE differently: keep one")
    return found[0] if found else None


def _rope_blocks(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for block in ("rope_scaling", "rope_parameters"):
        settings = raw.get(block)
        if settings is None:
            continue
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{block} must be an object or null, it is {settings!r}")
        yield block, settings
