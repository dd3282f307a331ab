"""Read run settings, from a YAML file or from the command line, into one flat table.

Both sources give {setting path: Given}; a name that means the same setting has the same path, so
that laying one table over the other settles which source wins.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mindformers_glm.config.refused_settings import find_refusal
from mindformers_glm.config.sentence_parser import CommandLineError
from mindformers_glm.config.setting import Setting
from mindformers_glm.config.settings_table import SETTINGS
from mindformers_glm.core.errors import ConfigError

# Sources are written as they end a phrase: "seed in run.yaml", "--seed on the command line".
COMMAND_LINE = "on the command line"
_LONGEST_SHOWN_VALUE = 80
_MAX_FILE_BYTES = 2**17  # takes 2 s; upstream's files have 10 KB
_MAX_NODES = 100_000  # with every alias written out
_MAX_NUMBER_CHARACTERS = 100
_MAX_DEPTH = 100


@dataclass(frozen=True)
class Given:
    """A value that the user gave to a setting, and how and where they gave it."""

    value: Any
    name: str
    source: str


def read_yaml_settings(path: Path) -> dict[str, Given]:
    """Read a YAML file in upstream's schema.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds something that is no setting.
    """
    try:
        with path.open("rb") as file:  # may be a pipe: --config <(command)
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigError(f"The config file {path} has more than {_MAX_FILE_BYTES} bytes.")
        # As text: PyYAML would take bytes for UTF-16 too.
        tree = yaml.load(content.decode("utf-8-sig"), _StrictLoader)
    except OSError as problem:
        raise ConfigError(f"Cannot read the config file {path}: {problem.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The config file {path} is not UTF-8 text.") from None
    except yaml.YAMLError as problem:
        raise ConfigError(f"The config file {path} is not valid YAML: {_told(problem)}.") from None
    except RecursionError:
        raise ConfigError(f"The config file {path} is nested too deeply.") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"The config file {path} must hold `key: value` lines, it holds {_shortened(tree)}."
        )
    return settings_from_tree(tree, f"in {path}")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key stands once, and a value that cannot be is a YAMLError too.

    Raises:
        RecursionError: nested deeper than any settings are; Python's own limit may be far away.
    """

    _depth = 0

    # PyYAML's type stubs do not say what a parent and an index are.
    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    # PyYAML's type stubs call the anchor a dict; it is text or None, and only passed on here.
    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        # Before merge keys (<<) are resolved, whose purpose is that a key stands twice.
        node = super().compose_mapping_node(anchor)
        first_lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            identity = (key.tag, key.value)
            if identity in first_lines:
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"the key {key.value} stands twice, first in line {first_lines[identity]}",
                    key.start_mark,
                )
            first_lines[identity] = key.start_mark.line + 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_size(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        try:
            if is_number and len(node.value) > _MAX_NUMBER_CHARACTERS:
                raise ValueError
            return super().construct_object(node, deep)
        # 2020-13-45; !!bool maybe; -_ has the form of a number.
        except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{_shortened(node.value)} is neither a number nor a date",
                node.start_mark,
            ) from None


def _check_size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Count the nodes with every alias written out, as whoever shows or merges a value does.

    Args:
        sizes: of the nodes counted already, by identity; None: being counted, so this one is a part
            of itself.
    """
    if id(node) not in sizes:
        sizes[id(node)] = None
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        sizes[id(node)] = 1 + sum(_check_size(part, sizes) for part in parts)
    size = sizes[id(node)]
    if size is None or size > _MAX_NODES:
        problem = "a part of itself" if size is None else f"more than {_MAX_NODES} values"
        raise yaml.composer.ComposerError(None, None, f"an alias is {problem}", node.start_mark)
    return size


def _told(problem: yaml.YAMLError) -> str:
    """What is wrong and in which line, without PyYAML's excerpt of the file."""
    if not isinstance(problem, yaml.MarkedYAMLError) or problem.problem_mark is None:
        return " ".join(str(problem).split())
    what = ", ".join(part for part in (problem.context, problem.problem) if part)
    return f"{what} (line {problem.problem_mark.line + 1})"


def settings_from_tree(tree: Mapping[str, Any], source: str) -> dict[str, Given]:
    """The settings in nested mappings; `source` names them in messages."""
    settings: dict[str, Given] = {}
    for name, value in _leaves(tree, source, prefix=""):
        setting = SETTINGS.find(name)
        if setting is None:
            raise unknown_name(name, source)
        _add(settings, setting, read_value(setting, value, name, source, from_text=False))
    return settings


def setting_from_text(
    name: str, texts: list[str], command: str = "predict"
) -> tuple[Setting, Given]:
    """The setting that `--name texts...` on the command line gives.

    Raises:
        CommandLineError: there is no such setting, or the value cannot be read.
        ConfigError: the setting does not take this value.
    """
    name = name.replace("-", "_")
    refuse_if_listed(name, COMMAND_LINE)
    setting = SETTINGS.find(name, on_command_line=True)
    if setting is None:
        refuse_if_block(name, COMMAND_LINE)
        raise unknown_name(name, COMMAND_LINE, command)
    value: Any = texts if setting.type.takes_many else " ".join(texts)
    return setting, read_value(setting, value, f"--{name}", COMMAND_LINE, from_text=True)


def refuse_if_listed(name: str, source: str) -> None:
    """Raise if `name` is one of upstream's settings that are never accepted here."""
    reason = find_refusal(name)
    if reason is not None:
        raise ConfigError(f"{name} {source} is refused: {reason}.")


def refuse_if_block(name: str, source: str) -> None:
    """Raise if `name` is a block of settings where a single one was expected."""
    if SETTINGS.is_block(name):
        raise _error(source)(
            f"{name} {source} is a block of settings: give one of them, {_some_keys(name)}."
        )


def unknown_name(name: str, source: str, command: str = "predict") -> ConfigError:
    """The error for a name that is no setting, of a command whose --help lists them."""
    if name == "config":
        return _error(source)(
            f"config {source} is no setting: give the YAML file as --config FILE on its own."
        )
    # What only the command line has, beside the settings.
    extra = ("config", "options", "help", "version") if source == COMMAND_LINE else ()
    nearest = SETTINGS.nearest_name(name, extra=extra)
    block = name.rpartition(".")[0]
    if nearest:
        advice = f"did you mean {nearest}?"
    elif SETTINGS.is_block(block):
        advice = f"{block} holds others, {_some_keys(block)}."
    else:
        advice = f"mindformers-glm {command} --help lists them."
    return _error(source)(f"Unknown setting {name} {source}: {advice}")


def _error(source: str) -> type[ConfigError]:
    """The error for what cannot be understood there."""
    return CommandLineError if source == COMMAND_LINE else ConfigError


def _some_keys(block: str) -> str:
    return "such as " + ", ".join(SETTINGS.block_keys(block)[:3])


def _leaves(tree: Mapping[str, Any], source: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf; None means that the key was left empty."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if value is None and (SETTINGS.is_block(name) or SETTINGS.find(name) or find_refusal(name)):
            continue
        refuse_if_listed(name, source)
        # An unknown block is entered too: its first key tells best which block was meant.
        if isinstance(value, dict) and value and SETTINGS.find(name) is None:
            yield from _leaves(value, source, prefix=f"{name}.")
        elif SETTINGS.is_block(name) and value != {}:
            raise ConfigError(
                f"{name} {source} must be a block of settings, {_some_keys(name)}, got "
                f"{_shortened(value)}."
            )
        elif not SETTINGS.is_block(name):
            yield name, value


def read_value(setting: Setting, raw: Any, name: str, source: str, *, from_text: bool) -> Given:
    """Convert and check one value.

    Raises:
        ConfigError: the setting does not take it; a CommandLineError where it cannot be read there.
    """
    try:
        if not from_text:
            value = setting.type.from_yaml(raw)
        elif setting.type.takes_many:
            value = tuple(setting.type.from_text(text) for text in raw)
        else:
            value = setting.type.from_text(raw)
    except ValueError:
        raise _error(source)(
            f"{name} {source} must be {setting.type.description}, got {_shortened(raw)}."
        ) from None
    # `is` for bool against int: True == 1 in Python, and neither may pass for the other.
    if setting.only and not any(
        value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
        for allowed in setting.only
    ):
        allowed_text = " or ".join(_shown(allowed) for allowed in setting.only)
        shown = "empty" if value == "" else _shown(value)
        raise ConfigError(
            f"{name} {source} is {shown} but can only be {allowed_text} here: {setting.because}."
        )
    if setting.minimum is not None and value < setting.minimum:
        raise ConfigError(f"{name} {source} must be at least {setting.minimum}, got {value}.")
    return Given(value, name, source)


def _shortened(raw: Any) -> str:
    """A value as it was read, cut where it would bury the sentence."""
    text = repr(raw)
    if len(text) > _LONGEST_SHOWN_VALUE:
        return f"{text[: _LONGEST_SHOWN_VALUE // 2]}... ({len(text)} characters)"
    return text


def _shown(value: Any) -> str:
    """A value as the user would write it."""
    if value == "":
        return "left out"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _add(settings: dict[str, Given], setting: Setting, given: Given) -> None:
    """Enter a setting; two names of one setting in one file must agree."""
    if setting.path in settings:
        check_agreement(settings[setting.path], given)
    settings[setting.path] = given


def check_agreement(one: Given, other: Given) -> None:
    """Raise if two names of one setting, given in one place, have two values."""
    if one.value != other.value:
        raise ConfigError(
            f"{one.name} and {other.name} {other.source} mean the same setting but differ: "
            f"{one.value} and {other.value}; keep one."
        )
