"""Read single keys of a parsed config.json strictly: nothing is guessed, nothing is converted."""

import math
from collections.abc import Mapping
from typing import Any

from mindformers_glm.core.errors import ConfigError

# The fields of GlmConfig that are sizes: every dialect states each of them, under its own name.
SIZE_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


def read_int(raw: Mapping[str, Any], key: str) -> int:
    """A whole number that must be there."""
    return _read(raw, key, (int,), "a whole number")


def read_float(raw: Mapping[str, Any], key: str) -> float:
    """A number that must be there."""
    number = _read(raw, key, (int, float), "a number")
    try:
        return float(number)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def read_bool(raw: Mapping[str, Any], key: str) -> bool:
    """true or false, which must be there."""
    return _read(raw, key, (bool,), "true or false")


def read_text(raw: Mapping[str, Any], key: str) -> str:
    """A text that must be there."""
    return _read(raw, key, (str,), "a text")


def read_dtype(raw: Mapping[str, Any]) -> str | None:
    """The type of the weights that the config states, if any."""
    key = "dtype" if raw.get("dtype") is not None else "torch_dtype"  # transformers 5 writes dtype
    return None if raw.get(key) is None else read_text(raw, key)


def read_token_ids(raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """One token id, several, or none."""
    found = raw.get(key)
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if any(type(token_id) is not int or token_id < 0 for token_id in ids):
        raise ConfigError(f"{key} must be a token id, a list of token ids or null, it is {found!r}")
    return tuple(ids)


def read_layer_numbers(raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Numbers of layers, each once and in order; absent or null means none."""
    found = raw.get(key)
    numbers = [] if found is None else found
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        raise ConfigError(f"{key} must be a list of layer numbers or null, it is {found!r}")
    return tuple(sorted(set(numbers)))


def read_shared_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of GlmConfig for which every dialect has the same keys."""
    return {
        "torch_dtype": read_dtype(raw),
        "float_layers_id": read_layer_numbers(raw, "float_layers_id"),
        "eos_token_ids": read_token_ids(raw, "eos_token_id"),
        "bos_token_id": next(iter(read_token_ids(raw, "bos_token_id")), None),
        "pad_token_id": next(iter(read_token_ids(raw, "pad_token_id")), None),
    }


def _read(raw: Mapping[str, Any], key: str, types: tuple[type, ...], wanted: str) -> Any:
    if raw.get(key) is None:
        raise ConfigError(
            f"the key {key!r} is missing; nothing is guessed here, so take it from the model's "
            "original config.json"
        )
    if type(raw[key]) not in types:  # not isinstance: True is an int to Python
        raise ConfigError(f"{key} must be {wanted}, it is {raw[key]!r}")
    return raw[key]
