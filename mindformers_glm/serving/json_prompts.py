"""Prompts written as JSON: objects with `prompt`, a text, or `messages`, a conversation."""

import json
from collections.abc import Mapping
from typing import Any

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.system.log import note

Message = Mapping[str, Any]
Prompt = str | list[Message]
# Members that would change the answer and are not read here: an answer without them would be wrong.
_SETTINGS = {*vars(SamplingParams()), "max_tokens", "tools", "tool_choice", "functions", "n"}


def looks_like_json_lines(line: str) -> bool:
    """Whether a line of text is an object with a prompt; text of people is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool({"prompt", "messages"} & value.keys())


def read_json_lines(lines: Mapping[int, str], source: str) -> list[Prompt]:
    """Prompts of lines that each hold one object.

    Args:
        lines: by their numbers in the file.
    Raises:
        ConfigError: a line holds something else; the sentence names it.
    """
    entries = {f"Line {n}": _parse(line, f"Line {n} of {source}") for n, line in lines.items()}
    return _read_entries(entries, source)


def read_json_list(text: str, source: str) -> list[Prompt]:
    """Prompts of one JSON list, whose items are objects or texts.

    Raises:
        ConfigError: it is none; the sentence names the item.
    """
    items = _parse(text, f"What is in {source}")
    if not isinstance(items, list) or not items:
        raise ConfigError(
            f"What is in {source} must be a JSON list of prompts, it is "
            f"{'an empty list' if items == [] else f'a {type(items).__name__}'}: write "
            '[{"prompt": "..."}, ...].'
        )
    return _read_entries({f"Item {n}": item for n, item in enumerate(items, start=1)}, source)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ConfigError(
            f"{place} is not valid JSON ({problem}): write an object with prompt or messages."
        ) from None


def _read_entries(entries: Mapping[str, Any], source: str) -> list[Prompt]:
    prompts = [_read_entry(entry, f"{place} of {source}") for place, entry in entries.items()]
    unused = {name for entry in entries.values() if isinstance(entry, dict) for name in entry}
    unused -= {"prompt", "messages"}
    if unused:
        note(f"{source}: only prompt and messages are read, not {', '.join(sorted(unused))}")
    return prompts


def _read_entry(entry: Any, place: str) -> Prompt:
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise ConfigError(
            f"{place} is a {type(entry).__name__}: write an object with prompt or messages."
        )
    entry = {name: value for name, value in entry.items() if value is not None}
    if refused := sorted(_SETTINGS & entry.keys()):
        raise ConfigError(
            f"{place} sets {', '.join(refused)}: that is not read from a file of prompts; settings "
            "are options for all prompts, tools are given to LLM.chat."
        )
    given = sorted({"prompt", "messages"} & entry.keys())
    if len(given) != 1:
        found = "both prompt and messages" if given else "neither prompt nor messages"
        raise ConfigError(f"{place} has {found}: give one of them.")
    value = entry[given[0]]
    if given == ["prompt"] and not (isinstance(value, str) and value.strip()):
        raise ConfigError(f"{place} has a prompt that is no text or empty: write a text.")
    if given == ["messages"] and not (
        isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    ):
        raise ConfigError(
            f'{place} must have messages such as [{{"role": "user", "content": "..."}}].'
        )
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # half of a pair, "\ud800"
        raise ConfigError(f"{place} holds a character that UTF-8 has not: check it.") from None
    prompt: Prompt = value
    return prompt
