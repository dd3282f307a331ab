"""JSON schemas on their way to llguidance: what it must not be given, and where a keyword stands.

Read: llguidance 1.9.1, docs/json_schema.md. It refuses keywords that it cannot follow, but names no
place; two things it takes and does otherwise than the schema says are refused here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine.structured_outputs import check_groups

# One blank, or a line end and the next line's indentation: as people write JSON. Without a bound a
# model may write blanks for ever.
_WHITESPACE = r" |\n[ \t]{0,40}"


def check_schema(schema: Mapping[str, Any], label: str) -> None:
    """Refuse what would make answers that are not valid, or slow.

    Args:
        label: names the schema in messages.
    Raises:
        PromptError: it has such a part, which is named.
        ConfigError: a pattern has too many groups.
    """
    for place, part in walk_schema(schema):
        if "x-guidance" in part:
            raise PromptError(
                f"{label}: x-guidance at {place} is no keyword of JSON schema: leave it out."
            )
        # Names of additional properties may come twice, and then count once.
        least = part.get("minProperties")
        required = part.get("required")
        num_required = len(required) if isinstance(required, list) else 0
        if isinstance(least, int) and least > max(1, num_required):
            raise PromptError(
                f"{label}: minProperties {least} at {place} cannot be kept beyond 1 or the number "
                "of required properties: name them in required."
            )
        if isinstance(pattern := part.get("pattern"), str):
            check_groups(f"{label}: pattern at {place}", pattern)


def walk_schema(schema: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each object of a schema with its place, a JSON pointer; values of const are none."""
    waiting = [("#", schema)]
    while waiting:
        place, part = waiting.pop()
        if isinstance(part, Mapping):
            yield place, part
            waiting += [
                (f"{place}/{name}", value)
                for name, value in part.items()
                if name not in ("const", "enum", "default", "examples", "example")
            ]
        elif isinstance(part, list):
            waiting += [(f"{place}/{index}", value) for index, value in enumerate(part)]


def with_options(schema: Mapping[str, Any], *, disable_any_whitespace: bool) -> dict[str, Any]:
    """Return the schema with what llguidance reads of how JSON is written."""
    space: dict[str, Any] = {"whitespace_pattern": _WHITESPACE}
    if disable_any_whitespace:
        space = {"whitespace_flexible": False}
    return {**schema, "x-guidance": space}


def explain_problem(message: str, schema: Mapping[str, Any] | None) -> str:
    """Return what llguidance says of a grammar in one line, with the place of a keyword.

    Args:
        schema: the JSON schema that the message is about; None: it is about something else.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    line = next(iter(lines), "no reason is known").rstrip(":.")
    # Of a regular expression the reason stands below a picture of it.
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    line = ": ".join([line, *reasons[:1]])
    if schema is None:
        return line
    unknown = re.match(r"Unimplemented keys: (\[.*\])", line)
    if unknown:
        names = json.loads(unknown[1])
        places = [place for place, part in walk_schema(schema) if all(n in part for n in names)]
        return f"{' and '.join(names)} at {[*places, 'some place'][0]} is not supported"
    named = re.match(r"(?:Unknown|Invalid) (format|type): (.*)", line)
    if named:
        keyword, value = named[1], named[2]
        places = [place for place, part in walk_schema(schema) if part.get(keyword) == value]
        return f"{keyword} {value!r} at {[*places, 'some place'][0]} is not supported"
    return line
