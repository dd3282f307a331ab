"""What the filters and methods that a chat template calls cost, charged before they run."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from mindformers_glm.tokenizer.template_allowance import (
    CHARACTERS_OF_A_UNIT,
    TEXTS_AND_SIZED,
    Allowance,
    TemplateLimitError,
)

_MAX_WIDTH = 10_000  # that a filter or a method pads to
# Filters that take a text as one value; others may look at every character on its own.
_TEXT_FILTERS = frozenset(
    (
        *("capitalize", "default", "d", "e", "escape", "forceescape", "format", "indent", "int"),
        *("float", "length", "count", "lower", "replace", "safe", "string", "title", "tojson"),
        *("trim", "truncate", "upper"),
    )
)
# Filters whose work does not depend on how much a value holds.
_QUICK_FILTERS = frozenset(
    (
        *("attr", "count", "d", "default", "first", "items", "last", "length", "map", "reject"),
        *("rejectattr", "select", "selectattr"),
    )
)
# Filters that do what a method of a text does.
_METHOD_OF_FILTER = {"replace": "replace", "indent": "indent", "trim": "strip"}
_PADDING_METHODS = ("ljust", "rjust", "center", "zfill", "expandtabs", "indent")
# They compare a part of the one text in every place of the other.
_SLOW_METHODS = ("rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip")
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
# "%99999d" and "%*d"; "{:99999}" and "{:{}}".
_WIDE_PERCENT = re.compile(r"%(\([^)]{0,100}\))?[#0 +-]*(\d{5}|\*|\d*\.(\d{5}|\*))")
_WIDE_BRACES = re.compile(r"\{[^{}]*(\d{5}|\{)")


def charge_percent(text: str | bytes, values: Any, allowance: Allowance) -> None:
    """Charge for `text % values`."""
    written = text if isinstance(text, str) else text.decode("latin-1")
    _charge_format(_WIDE_PERCENT, "%", written, values, allowance)


def charged_filter(
    name: str, function: Callable[..., Any], allowance: Allowance
) -> Callable[..., Any]:
    # Jinja gives some filters its context or environment first, and marks them so.
    num_passed = int(hasattr(function, "jinja_pass_arg"))

    def charged(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[num_passed:]
        others += kwargs.values()
        if isinstance(value, str) and name not in _TEXT_FILTERS:
            allowance.charge(len(value))
        width = 1
        for other in others:
            if type(other) is int and name not in ("default", "d"):
                if abs(other) > _MAX_WIDTH:
                    raise TemplateLimitError(f"its filter {name} is given the number {other}")
                width = max(width, abs(other))
        if name not in _QUICK_FILTERS:
            for _ in range(1 + width // 8):
                allowance.weigh(value)
            allowance.weigh(others)
        if name == "format":
            charge_percent(str(value), others, allowance)
        elif name in _METHOD_OF_FILTER and isinstance(value, str):
            charge_method(_METHOD_OF_FILTER[name], value, tuple(others), {}, allowance)
        elif name == "join" and others:
            value = allowance.count(value, 1 + len(str(others[0])) // CHARACTERS_OF_A_UNIT)
        elif name == "sum" and any(isinstance(other, TEXTS_AND_SIZED) for other in others[-1:]):
            raise TemplateLimitError("its filter sum adds up what are no numbers")
        return allowance.count(
            function(*args[:num_passed], value, *args[num_passed + 1 :], **kwargs)
        )

    charged.__dict__.update(getattr(function, "__dict__", {}))  # a builtin has none
    return charged


def charged_test(function: Callable[..., Any], allowance: Allowance) -> Callable[..., Any]:
    def charged(*args: Any) -> Any:
        allowance.weigh(args)
        return function(*args)

    return charged


def _charge_format(
    wide: re.Pattern[str], sign: str, text: str, values: Any, allowance: Allowance
) -> None:
    """Charge for what formatting writes: any of the values in any of the places."""
    if wide.search(text):
        raise TemplateLimitError("it writes a value in a width that is too large")
    allowance.weigh(values, text.count(sign))


def charge_method(
    name: str,
    text: str | bytes,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    allowance: Allowance,
) -> tuple[Any, ...]:
    """Charge for what a method of a text does; return its arguments, iterators counted."""
    allowance.charge_text(len(text))
    given = [*args, *kwargs.values()]
    numbers = [number for number in given if type(number) is int]
    texts = [len(other) for other in given if isinstance(other, str | bytes)]
    if name in ("format", "format_map"):
        plain = re.sub(r"\{\{|\}\}", "", str(text))
        _charge_format(_WIDE_BRACES, "{", plain, given, allowance)
    elif name in _PADDING_METHODS:
        if any(abs(number) > _MAX_WIDTH for number in numbers):
            raise TemplateLimitError(f"it calls {name} with a number that is too large")
        num_places = sum(map(text.count, _LINE_ENDS + "\t")) if isinstance(text, str) else len(text)
        allowance.charge_text((1 + num_places) * max([8, *map(abs, numbers), *texts]))
    elif name == "replace" and len(texts) > 1:
        allowance.charge_text(text.count(given[0]) * texts[1])
    elif name in _SLOW_METHODS:
        allowance.charge_text(len(text) * max(texts, default=0))
    elif name in ("translate", "striptags", "unescape"):
        allowance.charge(len(text) * (1 + sum(map(len, map(str, given)))))
    if name in ("split", "rsplit"):
        is_given = any(texts) and isinstance(given[0], type(text))
        allowance.charge(text.count(given[0]) if is_given else len(text) // 2)
    elif name == "splitlines" and isinstance(text, str):
        allowance.charge(sum(map(text.count, _LINE_ENDS)))
    elif name == "join":
        units = 1 + len(text) // CHARACTERS_OF_A_UNIT
        args = tuple(allowance.count(values, units) for values in args)
    return args


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` of transformers, which does not write for HTML."""
    if len(str(separators)) > 100 or len(str(indent)) > 100:
        raise TemplateLimitError("it separates values by a text that is too long")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def write_time(form: str) -> str:
    if len(form) > 100 or re.search(r"%[^a-zA-Z%]*\d{3}", form):
        raise TemplateLimitError("it writes the time in a form that is too long")
    return datetime.now().strftime(form)
