"""How much work one rendering of a chat template may do."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from jinja2.utils import Namespace

MAX_BITS = 256  # of a whole number
_FEWEST_UNITS = 500_000  # of about a microsecond; glm-4-9b-chat's template takes 500 for a message
_UNITS_OF_A_VALUE = 400  # for every value in messages and tools
CHARACTERS_OF_A_UNIT = 64  # of text that is copied, compared or searched
_FEWEST_WRITTEN = 2**20  # characters, beside sixteen times those given
# What is looked into for its size; an iterator is not, it is charged as it goes.
SIZED = (list, tuple, set, frozenset, dict, range, KeysView, ValuesView, ItemsView)
TEXTS_AND_SIZED = (str, bytes, *SIZED)


class TemplateLimitError(Exception):
    """A template does or writes more than any conversation needs."""


class Allowance:
    """What one rendering may still do.

    Args:
        values: what is given to the template.
    """

    def __init__(self, values: Any) -> None:
        num_values, num_characters = _measure(values)
        self.units = _FEWEST_UNITS + _UNITS_OF_A_VALUE * num_values + 2 * num_characters
        self._left = self.units
        self.max_written = _FEWEST_WRITTEN + 16 * num_characters

    @property
    def num_used(self) -> int:
        """Units that were taken away."""
        return self.units - self._left

    def charge(self, units: int) -> None:
        """Take units away.

        Raises:
            TemplateLimitError: there are no more.
        """
        self._left -= units
        if self._left < 0:
            raise TemplateLimitError("it takes more steps than any conversation needs")

    def charge_text(self, characters: int) -> None:
        """Take away what it costs to make so long a text."""
        self.charge(1 + characters // CHARACTERS_OF_A_UNIT)

    def weigh(self, value: Any, times: int = 1) -> Any:
        """Charge for all that a value holds, so many times, and return it."""
        left = self._left
        self._weigh(value)
        self.charge((left - self._left) * max(times - 1, 0))
        return value

    def _weigh(self, value: Any) -> None:
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str | bytes):
                self.charge_text(len(item))
            elif isinstance(item, int) and item.bit_length() > MAX_BITS:
                raise TemplateLimitError("it computes with a number that is too large")
            elif isinstance(item, Namespace):
                self.charge(1)
                stack.append(object.__getattribute__(item, "_Namespace__attrs"))
            elif isinstance(item, SIZED):
                self.charge(1 + len(item))
                if not isinstance(item, range):
                    stack += item
                    stack += item.values() if isinstance(item, dict) else ()

    def count(self, values: Any, units: int = 1) -> Any:
        """Charge for each of some values, of an iterator when it gives them."""
        if isinstance(values, TEXTS_AND_SIZED):
            self.charge(1 + units * len(values))
            return values
        return self._count_each(values, units) if hasattr(values, "__next__") else values

    def _count_each(self, values: Iterator[Any], units: int) -> Iterator[Any]:
        for value in values:
            self.charge(units)
            yield value


def _measure(values: Any) -> tuple[int, int]:
    """Return how many values there are, within others too, and how many characters of text."""
    num_values = num_characters = 0
    stack = [values]
    while stack:
        item = stack.pop()
        num_values += 1
        if isinstance(item, str):
            num_characters += len(item)
        elif isinstance(item, Mapping):
            stack += item
            stack += item.values()
        elif isinstance(item, list | tuple):
            stack += item
    return num_values, num_characters
