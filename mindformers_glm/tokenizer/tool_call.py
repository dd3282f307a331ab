"""A function that a model calls, as conversations carry it in and replies bring it out."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool.

    Attributes:
        name: the tool's name.
        arguments: JSON text, an object of the arguments by name; for a tool that takes plain text
            (glm-4-9b-chat's `python`, say) a JSON string.
        id: names the call in a conversation that came with one.
        is_open: more of the arguments may come; in a whole answer: they were cut off.
    """

    name: str
    arguments: str
    id: str = ""
    is_open: bool = False

    @property
    def text(self) -> str:
        """What GLM-4 writes below the name: the arguments, or the plain text."""
        arguments = read_json(self.arguments)
        return arguments if isinstance(arguments, str) else self.arguments


def read_json(text: str) -> Any:
    """Read strict JSON.

    Raises:
        ValueError: it is none, or is nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_json(value: Any) -> str:
    """Write strict JSON, with characters as they are.

    Raises:
        ValueError: JSON cannot express the value.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # half a surrogate pair is no text
    except (TypeError, RecursionError):
        raise ValueError("not a value of JSON") from None
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
