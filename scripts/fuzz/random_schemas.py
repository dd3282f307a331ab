"""Random JSON schemas, and whether a value is valid by one: of the keywords that they use, no more.

Numbers are bounded and texts are short, so that an answer of random tokens comes to its end.
"""

import json
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

_WORDS = (
    "name",
    "city",
    "温度",
    "is_ok",
    "x-y",
    "日期",
    "a b",
    'quo"te',
    "",
    "Ünïcode",
    "🦀",
    "tab\t",
)
_PATTERNS = (
    r"^[a-f0-9]{4}$",
    r"^[A-Z][a-z]+(-[A-Z][a-z]+)?$",
    r"^\d{3}/\d{2}$",
    r"^(北|南|东|西)京?$",
)
_FORMATS = {
    "date": r"\d{4}-\d\d-\d\d",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"\d{1,3}(\.\d{1,3}){3}",
}
_MAX_DEPTH = 3


def make_schema(rng: random.Random) -> dict[str, Any]:
    """Return a schema; all objects say what else they may have, as the default is: anything."""
    schema = _make_object(rng, 0) if rng.random() < 0.7 else _make_any(rng, 0)
    if rng.random() < 0.15:  # a list that goes on by a reference
        node = {
            "type": "object",
            "properties": {"value": _make_leaf(rng), "next": {"$ref": "#/$defs/node"}},
            "required": ["value"],
            "additionalProperties": False,
        }
        schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    return schema


def _make_any(rng: random.Random, depth: int) -> dict[str, Any]:
    makers: list[Callable[[], dict[str, Any]]] = [lambda: _make_leaf(rng)]
    if depth < _MAX_DEPTH:
        makers += [
            lambda: _make_object(rng, depth + 1),
            lambda: _make_array(rng, depth + 1),
            lambda: {"anyOf": [_make_any(rng, depth + 1) for _ in range(rng.randint(1, 3))]},
        ]
    return rng.choice(makers)()


def _make_object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_WORDS, rng.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _make_any(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }
    if not names and rng.random() < 0.5:
        schema = {"type": "object", "additionalProperties": _make_leaf(rng), "maxProperties": 2}
    return schema


def _make_array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    most = least + rng.randint(0, 2)
    schema = {"type": "array", "items": _make_any(rng, depth + 1), "minItems": least}
    schema["maxItems"] = most
    if rng.random() < 0.2:
        first = [_make_leaf(rng) for _ in range(rng.randint(1, 2))]
        schema = {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}
    return schema


def _make_leaf(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    return rng.choice(
        [
            {"type": "string", "maxLength": rng.randint(0, 6)},
            {"type": "string", "minLength": 2, "maxLength": rng.randint(2, 8)},
            {"type": "string", "pattern": rng.choice(_PATTERNS)},
            {"type": "string", "format": rng.choice([*_FORMATS])},
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 1000)},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 9},
            {"type": "integer", "minimum": 0, "maximum": 300, "multipleOf": rng.choice([2, 5, 7])},
            {"type": "number", "minimum": low, "maximum": low + 0.5},
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["boolean", "null"]},
            {"enum": rng.sample(["red", "绿", 7, None, True, 1.5, ["a"], {"k": "v"}], 3)},
            {"const": rng.choice(["fixed", 42, False, {"a": [1, "二"]}])},
        ]
    )


def find_fault(value: Any, schema: Any, root: Any = None) -> str | None:
    """Return what is wrong with a value by a schema of these keywords; None: it is valid.

    Args:
        root: what references are looked up in; None: the schema itself.
    """
    root = schema if root is None else root
    if schema is True:
        return None
    if schema is False:
        return "nothing is allowed here"
    for keyword, wanted in schema.items():
        if keyword not in ("$defs", *_CHECKS):
            return f"this checker does not know {keyword}"
        if keyword != "$defs" and (fault := _CHECKS[keyword](value, wanted, schema, root)):
            return fault
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and value == int(value),
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def _same(one: Any, other: Any) -> bool:
    """JSON's equality: 1 is no true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _check_type(value: Any, wanted: Any, *_: Any) -> str | None:
    kinds = [wanted] if isinstance(wanted, str) else wanted
    return None if any(_TYPES[kind](value) for kind in kinds) else f"{value!r} is not {wanted}"


def _check_properties(value: Any, wanted: Any, schema: Any, root: Any) -> str | None:
    faults = (
        find_fault(value[name], part, root)
        for name, part in wanted.items()
        if isinstance(value, dict) and name in value
    )
    return next(filter(None, faults), None)


def _check_additional(value: Any, wanted: Any, schema: Any, root: Any) -> str | None:
    names = value.keys() - schema.get("properties", {}).keys() if isinstance(value, dict) else ()
    return next(filter(None, (find_fault(value[name], wanted, root) for name in names)), None)


def _check_prefix(value: Any, wanted: Any, schema: Any, root: Any) -> str | None:
    pairs = zip(value, wanted, strict=False) if isinstance(value, list) else ()
    return next(filter(None, (find_fault(item, part, root) for item, part in pairs)), None)


def _check_items(value: Any, wanted: Any, schema: Any, root: Any) -> str | None:
    items = value[len(schema.get("prefixItems", ())) :] if isinstance(value, list) else ()
    return next(filter(None, (find_fault(item, wanted, root) for item in items)), None)


def _check_any(value: Any, wanted: Any, schema: Any, root: Any) -> str | None:
    faults = [find_fault(value, part, root) for part in wanted]
    return None if None in faults else f"{value!r} fits none of anyOf: {faults}"


def _check_reference(value: Any, wanted: str, schema: Any, root: Any) -> str | None:
    found = root
    for step in wanted.split("/")[1:]:
        found = found[step]
    return find_fault(value, found, root)


def _bound(kind: type | tuple[type, ...], is_right: Callable[[Any, Any], bool]) -> Any:
    """Check values of one kind; others are none of the keyword's business."""

    def check(value: Any, wanted: Any, *_: Any) -> str | None:
        is_kind = isinstance(value, kind) and not isinstance(value, bool)
        return f"{value!r} breaks {wanted!r}" if is_kind and not is_right(value, wanted) else None

    return check


_NUMBERS = (int, float)
_CHECKS: dict[str, Callable[[Any, Any, Any, Any], str | None]] = {
    "$ref": _check_reference,
    "anyOf": _check_any,
    "type": _check_type,
    "properties": _check_properties,
    "additionalProperties": _check_additional,
    "prefixItems": _check_prefix,
    "items": _check_items,
    "required": _bound(dict, lambda value, names: value.keys() >= {*names}),
    "maxProperties": _bound(dict, lambda value, most: len(value) <= most),
    "minItems": _bound(list, lambda value, least: len(value) >= least),
    "maxItems": _bound(list, lambda value, most: len(value) <= most),
    "minLength": _bound(str, lambda value, least: len(value) >= least),
    "maxLength": _bound(str, lambda value, most: len(value) <= most),
    "pattern": _bound(str, lambda value, pattern: re.search(pattern, value) is not None),
    "format": _bound(str, lambda value, name: re.fullmatch(_FORMATS[name], value) is not None),
    "minimum": _bound(_NUMBERS, lambda value, least: value >= least),
    "maximum": _bound(_NUMBERS, lambda value, most: value <= most),
    "exclusiveMinimum": _bound(_NUMBERS, lambda value, least: value > least),
    "exclusiveMaximum": _bound(_NUMBERS, lambda value, most: value < most),
    "multipleOf": _bound(_NUMBERS, lambda value, unit: Fraction(value) % Fraction(unit) == 0),
    "enum": lambda value, wanted, *_: (
        None if any(_same(value, one) for one in wanted) else f"{value!r} is not in {wanted!r}"
    ),
    "const": lambda value, wanted, *_: (
        None if _same(value, wanted) else f"{value!r} is not {wanted!r}"
    ),
}
