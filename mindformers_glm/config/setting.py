"""What a row of the table of settings says, and how a row is found by its names."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from mindformers_glm.config.value_types import ValueType

SERVER_BLOCK = "serve"
_LEAST_LIKENESS = 0.75  # of a name that is suggested


@dataclass(frozen=True)
class Setting:
    """One run setting.

    path: dotted name in the YAML file; `--path value` sets it on the command line.
    default: the value where neither YAML nor command line gives one.
    help: for --help and docs/configuration.md; settings without it are accepted, not advertised.
    use: who takes the value: `LLM` as a keyword argument, `SamplingParams` as a field, `LLM` in its
        `device_options` ("device"), the command itself ("command") or nobody; "server" and
        "server LLM": `serve` itself, and `LLM` when `serve` makes it.
    commands: the command lines that have it; a YAML file may hold it for any command.
    name: of that argument or field; the last part of `path` unless given.
    unset: what a default stands for, where the value itself does not say so.
    only, because: the accepted values, and why others are refused (completes "...: ").
    minimum: the least accepted number.
    check: raises ConfigError where this machine cannot do the value that was settled on.
    without_effect: why an accepted value changes nothing, where it does so; see `backend`.
    backend: the device_target that alone it has an effect on; empty: all, or none where there is
        `without_effect`.
    aliases: other dotted names with the same meaning, in YAML and on the command line.
    options: further names on the command line alone.
    """

    path: str
    type: ValueType
    default: Any = None
    help: str = ""
    use: Literal["LLM", "sampling", "device", "command", "server", "server LLM", ""] = ""
    name: str = ""
    unset: str = ""
    only: tuple[Any, ...] = ()
    because: str = ""
    minimum: float | None = None
    check: Callable[[Any], None] | None = None
    without_effect: str = ""
    backend: Literal["CPU", "Ascend", ""] = ""
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    commands: tuple[str, ...] = ("predict", "serve", "chat", "webui")

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.path.rpartition(".")[2])

    @property
    def default_text(self) -> str:
        """The default as --help and the documentation show it; empty: nothing."""
        many = self.default if isinstance(self.default, tuple) else (self.default,)
        return self.unset or " ".join(str(value) for value in many if value is not None)

    def idle_reason(self, device_target: str) -> str:
        """Why a value changes nothing on this device, or ""."""
        if self.backend == "":
            return self.without_effect
        if self.backend == device_target:
            return ""
        return self.without_effect or f"it takes effect on {self.backend} only"


class SettingsTable:
    """All settings, by the sections of docs/configuration.md that show them."""

    def __init__(self, sections: Mapping[str, Sequence[Setting]]) -> None:
        self.sections = sections
        self._rows = tuple(chain(*sections.values()))
        self._by_name = {name: row for row in self._rows for name in (row.path, *row.aliases)}
        self._by_option = {name: row for row in self._rows for name in row.options}
        self._blocks = {
            name.rsplit(".", depth)[0]
            for name in self._by_name
            for depth in range(1, name.count(".") + 1)
        }

    def __iter__(self) -> Iterator[Setting]:
        return iter(self._rows)

    def find(self, name: str, *, on_command_line: bool = False) -> Setting | None:
        """The setting that `name` (dotted) means, or None."""
        return self._by_name.get(name) or (self._by_option.get(name) if on_command_line else None)

    def is_block(self, name: str) -> bool:
        """Whether `name` is a block of settings, such as context."""
        return name in self._blocks

    def block_keys(self, block: str) -> list[str]:
        """The full names of the settings in a block, in the order of the table."""
        return [name for name in self._by_name if name.startswith(f"{block}.")]

    def nearest_name(self, name: str, *, extra: Iterable[str] = ()) -> str:
        """The setting, block or one of `extra` that was probably meant by `name`; "": none is near.

        A key of a known block is looked for in that block, unless exactly this key stands
        elsewhere: context.top_k is top_k, max_device_memory context.max_device_memory.
        """
        block, _, key = name.rpartition(".")
        known = [*self._by_name, *self._blocks, *extra]
        if block != SERVER_BLOCK:  # whoever runs predict does not look for those
            known = [other for other in known if not other.startswith(f"{SERVER_BLOCK}.")]
        if not any(other.rpartition(".")[2] == key for other in known) and self.is_block(block):
            known = self.block_keys(block)
        arguments = {
            row.name: row.path for row in self._rows if row.use and "predict" in row.commands
        }
        if name in arguments:  # what Python calls it
            return arguments[name]
        scored = [(self._likeness(name, other), other) for other in known]
        (likeness, _), nearest = max(scored, key=lambda pair: pair[0])
        return nearest if likeness >= _LEAST_LIKENESS else ""

    def _likeness(self, name: str, known: str) -> tuple[float, float]:
        """How alike two names are: their last parts or the whole, then the whole.

        Equal blocks prove nothing: context.foo is like no setting of context.
        """
        key, known_key = name.rpartition(".")[2], known.rpartition(".")[2]
        whole, last = _spelt_alike(name, known), _spelt_alike(key, known_key)
        row = self.find(known)
        if row is None or row.help:
            # --temp is a shortened temperature, and --batch_size the end of predict_batch_size.
            is_start = known_key.startswith(key) and len(key) >= 0.36 * len(known_key)
            is_end = known_key.endswith(f"_{key}") and len(key) >= 0.4 * len(known_key)
            last = max(last, 0.9 * (is_start or is_end))
        elif "." not in name and last < 1:  # nobody looks for it by a part of its name
            last = 0
        return max(last, 0.0 if "." in name else whole), whole


def _spelt_alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()
