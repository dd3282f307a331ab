"""What a row of the table of settings says, and how a row is found by its names."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from mindformers_glm.config.value_types import ValueType

_UNSET_MEANS = "CPU"  # of device_target, as long as nothing else is implemented


@dataclass(frozen=True)
class Setting:
    """One run setting.

    path: dotted name in the YAML file; `--path value` sets it on the command line.
    default: the value where neither YAML nor command line gives one.
    help: for --help and docs/configuration.md; settings without it are accepted, not advertised.
    use: who takes the value: `LLM` as a keyword argument, `SamplingParams` as a field, predict
        itself ("command") or nobody.
    name: of that argument or field; the last part of `path` unless given.
    unset: what a default stands for, where the value itself does not say so.
    only, because: the accepted values, and why others are refused (completes "...: ").
    minimum: the least accepted number.
    check: raises ConfigError where this machine cannot do the value that was settled on.
    without_effect: why an accepted value changes nothing.
    backend: the device_target that alone it has an effect on; empty: all.
    aliases: other dotted names with the same meaning, in YAML and on the command line.
    options: further names on the command line alone.
    """

    path: str
    type: ValueType
    default: Any = None
    help: str = ""
    use: Literal["LLM", "sampling", "command", ""] = ""
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.path.rpartition(".")[2])

    @property
    def default_text(self) -> str:
        """The default as --help and the documentation show it; empty: nothing."""
        many = self.default if isinstance(self.default, tuple) else (self.default,)
        return self.unset or " ".join(str(value) for value in many if value is not None)

    def idle_reason(self, device_target: str | None) -> str:
        """Why a value changes nothing, or "".

        Args:
            device_target: as it was given; None, which leaves it open, means CPU so far.
        """
        if self.without_effect or self.backend in ("", device_target or _UNSET_MEANS):
            return self.without_effect
        return f"it takes effect on {self.backend} only"


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
        """The setting, or one of `extra`, that `name` was probably meant to be; always one.

        A key of a known block is looked for in that block, unless exactly this key stands
        elsewhere: context.top_k is top_k, max_device_memory context.max_device_memory.
        """
        block, _, key = name.rpartition(".")
        known = [*self._by_name, *extra]
        if not any(other.rpartition(".")[2] == key for other in known) and self.is_block(block):
            known = self.block_keys(block)
        return max(known, key=lambda other: _likeness(name, other))


def _likeness(name: str, known: str) -> tuple[float, float]:
    """How alike two names are: the more alike of their last parts and the whole, then the whole."""
    key, known_key = name.rpartition(".")[2], known.rpartition(".")[2]
    whole, last = (
        difflib.SequenceMatcher(None, left.lower(), right.lower()).ratio()
        for left, right in ((name, known), (key, known_key))
    )
    if len(key) > 2 and known_key.startswith(key):  # --temp is a shortened temperature
        last = max(last, 0.9)
    return max(whole, last), whole
