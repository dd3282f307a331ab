"""The types a run setting can have, as YAML gives them and as the command line gives them.

YAML values are already typed and are taken literally: the text "4" is not a number there. The
command line knows text only, so there "4" is one.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.kv_cache import AUTO, INT8
from mindformers_glm.system.files import parse_json

# "GB" counts 2**30, as MindSpore's max_device_memory does.
_SIZE_UNITS = {"KB": 2**10, "MB": 2**20, "GB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMG])i?B", re.IGNORECASE)
_DTYPE_NAMES = {name: name for name in DTYPE_BYTES} | {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}


@dataclass(frozen=True)
class ValueType:
    """How values of one type are read; both readers raise ValueError on anything else.

    `description` completes "... must be": "a whole number".
    """

    description: str
    from_yaml: Callable[[Any], Any]
    from_text: Callable[[str], Any]
    takes_many: bool = False


def parse_size(text: Any) -> int:
    """Bytes in a size such as "59GB", which counts 2**30 bytes a GB.

    Raises:
        ValueError: not such a size, zero, or more than a float64 holds.
    """
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(text)
    num_bytes = float(match[1]) * _SIZE_UNITS[match[2].upper() + "B"]
    if num_bytes < 1 or math.isinf(num_bytes):
        raise ValueError(text)
    return int(num_bytes)


def _exactly(*types: type) -> Callable[[Any], Any]:
    """Reads a YAML value of just these types; bool is an int to Python but not to a user."""

    def read(value: Any) -> Any:
        if type(value) not in types:
            raise ValueError(value)
        return value

    return read


def _boolean_from_text(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _number_from_yaml(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(value)
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        raise ValueError(value) from None
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _texts_from_yaml(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) for item in values):
        raise ValueError(value)
    return tuple(values)


def _with_new_lines(text: str) -> str:
    """As in prompts, \\n stands for a new line, which is hard to type in a shell."""
    return text.replace("\\n", "\n")


def _dtype(value: Any) -> str:
    if not isinstance(value, str) or value not in _DTYPE_NAMES:
        raise ValueError(value)
    return _DTYPE_NAMES[value]


def _kv_cache_dtype(value: Any) -> str:
    return value if value in (AUTO, INT8) else _dtype(value)


def _boolean_or(from_yaml: Callable[[Any], Any], from_text: Callable[[str], Any]) -> tuple:
    """Readers of a value that is True, False, or what the given readers take."""

    def read_yaml(value: Any) -> Any:
        return value if isinstance(value, bool) else from_yaml(value)

    def read_text(text: str) -> Any:
        return _boolean_from_text(text) if text.lower() in ("true", "false") else from_text(text)

    return read_yaml, read_text


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(value)
    return value


def _object_from_text(text: str) -> dict[str, Any]:
    return _object(parse_json(text))


def _auto(value: Any) -> str:
    if value != "auto":
        raise ValueError(value)
    return "auto"


def _cache_mode(value: Any) -> str:
    if isinstance(value, bool):  # on and off are booleans in YAML
        return "on" if value else "off"
    if value not in ("on", "off", "auto", "verify"):
        raise ValueError(value)
    return value


def _graph_level(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 3:
        raise ValueError(value)
    return value


def _graph_mode_from_text(text: str) -> Any:
    return int(text) if text.isdecimal() else text


TEXT = ValueType("text", _exactly(str), str)
TEXTS = ValueType("text, or a list of texts", _texts_from_yaml, str, takes_many=True)
ESCAPED_TEXTS = ValueType(
    TEXTS.description,
    lambda value: tuple(map(_with_new_lines, _texts_from_yaml(value))),
    _with_new_lines,
    takes_many=True,
)
JSON_OBJECT = ValueType('an object such as {"enable_thinking": false}', _object, _object_from_text)
BOOLEAN = ValueType("True or False", _exactly(bool), _boolean_from_text)
INTEGER = ValueType("a whole number", _exactly(int), int)
NUMBER = ValueType("a number", _number_from_yaml, lambda text: _number_from_yaml(float(text)))
DTYPE = ValueType("float32, bfloat16 or float16", _dtype, _dtype)
KV_CACHE_DTYPE = ValueType(
    "auto, float16, float32, bfloat16 or int8", _kv_cache_dtype, _kv_cache_dtype
)
SIZE = ValueType('a size such as "59GB"', parse_size, parse_size)
TRUE_FALSE_AUTO = ValueType("True, False or auto", *_boolean_or(_auto, _auto))
CACHE_MODE = ValueType("on, off, auto or verify", _cache_mode, _cache_mode)
GRAPH_LEVEL = ValueType(
    "True, False or a level from 0 to 3",
    *_boolean_or(_graph_level, lambda text: _graph_level(int(text))),
)
TEXT_OR_INTEGER = ValueType("text or a whole number", _exactly(str, int), _graph_mode_from_text)
