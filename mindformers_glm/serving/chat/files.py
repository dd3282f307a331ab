"""The files of a chat: tools that it offers, conversations that it saves."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import ConfigError, first_words

_FORM = '[{"type": "function", "function": {"name": ..., "parameters": {...}}}, ...]'


def read_tools(name: str) -> list[dict[str, Any]]:
    """Read descriptions of functions.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        text = Path(os.path.expanduser(name)).read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else first_words(problem)
        raise ConfigError(
            f"The tools file {name} cannot be read ({reason}): give a JSON file that holds {_FORM}."
        ) from None
    return parse_tools(text, f"The tools file {name}")


def parse_tools(text: str, place: str) -> list[dict[str, Any]]:
    """Read descriptions of functions in a text.

    Args:
        place: where it stands, the beginning of a sentence.
    Raises:
        ConfigError: it is no JSON, or holds something else.
    """
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ConfigError(
            f"{place} cannot be read ({first_words(problem)}): it must be JSON that holds {_FORM}."
        ) from None
    if not isinstance(tools, list) or not all(map(_is_tool, tools)):
        raise ConfigError(f"{place} must hold {_FORM}.")
    return tools


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of functions, as `read_tools` gives them."""
    return [tool["function"]["name"] for tool in tools]


class SavedFiles:
    """Writes conversations; of the files that are there already only its own are replaced."""

    def __init__(self) -> None:
        self._own: set[Path] = set()

    def write(self, name: str, messages: Sequence[Mapping[str, Any]]) -> Path:
        """Write messages in OpenAI's form and return the path.

        Raises:
            ConfigError: there is no name, such a file already, or it cannot be written.
        """
        if not name:
            raise ConfigError("/save needs the name of a file: /save FILE.")
        path = Path(os.path.expanduser(name)).absolute()
        text = json.dumps(list(messages), ensure_ascii=False, indent=2)
        try:
            with path.open("w" if path in self._own else "x", encoding="utf-8") as file:
                self._own.add(path)
                file.write(f"{text}\n")
        except FileExistsError:
            raise ConfigError(f"{path} is there already: choose another name.") from None
        except OSError as problem:
            raise ConfigError(f"{path} cannot be written: {problem.strerror}.") from None
        return path
