"""The chat templates of a folder, by name, from all the places where transformers puts them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.system.files import read_file, read_json_if_present

DEFAULT_TEMPLATE = "default"
TOOL_TEMPLATE = "tool_use"  # taken where tools are given
_CONFIG = "tokenizer_config.json"
_FILE = "chat_template.jinja"
_JSON_FILE = "chat_template.json"  # as transformers 4 wrote it beside processors
_MORE_FILES = "additional_chat_templates"
TEMPLATE_FILES = (_FILE, _JSON_FILE)


def list_template_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold nothing but templates, as far as they are there."""
    files = [folder / name for name in TEMPLATE_FILES if (folder / name).exists()]
    return files + sorted((folder / _MORE_FILES).glob("*.jinja"))


def read_chat_templates(
    folder: Path, tokenizer_config: Mapping[str, Any]
) -> tuple[dict[str, str], str]:
    """Return the templates by name, and where they stand.

    As in transformers, chat_template.jinja takes the place of those in tokenizer_config.json.
    chat_template.json counts where neither has a default.

    Raises:
        CheckpointError: one of them is broken.
    """
    templates = {
        path.stem: _read_text(path, CheckpointError)
        for path in sorted((folder / _MORE_FILES).glob("*.jinja"))
    }
    if (folder / _FILE).exists():
        return templates | {DEFAULT_TEMPLATE: _read_text(folder / _FILE, CheckpointError)}, _FILE
    config = folder / _CONFIG
    templates = _read_entry(tokenizer_config.get("chat_template"), config) | templates
    if DEFAULT_TEMPLATE in templates:
        return templates, f"in {_CONFIG}"
    raw = read_json_if_present(folder / _JSON_FILE, CheckpointError)
    return _read_entry(raw.get("chat_template"), folder / _JSON_FILE) | templates, _JSON_FILE


def read_given_template(given: str, names: Mapping[str, str]) -> tuple[str, str]:
    """Return the text of a template that a user names, and what to call it.

    Args:
        given: one of the `names`, a template's text, or a file.
    Raises:
        ConfigError: it is none of these.
    """
    if given in names:
        return names[given], given
    if "{%" in given or "{{" in given:
        return given, "chat_template"
    path = Path(given).expanduser()
    if not path.is_file():
        known = f"the checkpoint has {', '.join(sorted(names))}" if names else "it has none"
        raise ConfigError(
            f"chat_template {given!r:.80} is neither the name of a template ({known}) nor a "
            "template's text nor a file: correct it or leave it out."
        )
    return _read_text(path, ConfigError), str(path)


def _read_text(path: Path, error: type[Exception]) -> str:
    content = read_file(path, error)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"Cannot read {path}: {problem}.") from None
    if not text.strip():
        raise error(f"{path} is empty: download it again, or delete it.")
    return text


def _read_entry(entry: Any, path: Path) -> dict[str, str]:
    """A text; several by name as an object, or as a list of {"name": ..., "template": ...}."""
    named = entry
    if entry is None:
        named = {}
    elif isinstance(entry, str):
        named = {DEFAULT_TEMPLATE: entry}
    elif isinstance(entry, list) and all(isinstance(item, Mapping) for item in entry):
        named = {item.get("name"): item.get("template") for item in entry}
    if not isinstance(named, dict) or not all(
        isinstance(text, str) for pair in named.items() for text in pair
    ):
        raise CheckpointError(
            f"{path}: chat_template must be a text, or several by name, got "
            f"{json.dumps(entry)[:80]}."
        )
    return named
