"""What a network does in a step, written down by calling it.

Layers are called on Values and return Values. Nothing is computed then: a Value remembers the call
that makes it, and so all that leads to it. program.py turns that into what MindSpore runs.
"""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from mindspore import nn

_NUMBERS = count()


@dataclass(frozen=True)
class Operator:
    """One operator, a function of the library that MindSpore can call.

    Of its M rows those are real that an operand `num_rows` (int32 [1]) or the metadata says; the
    others are neither read nor written. tests/kernels/reference.py defines what each computes.

    Attributes:
        symbol: its name in the library.
        width: axis 1 of its result.
        rows_operand: which operand has as many rows as the result.
        writes_operands: whether it changes what it is given.
    """

    symbol: str
    width: int
    rows_operand: int = 0
    writes_operands: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Value:
    """An array of a step: an input of the network, or what a call makes.

    Attributes:
        made_by: the call that makes it; None for an input.
        num_rows: int32 [1], how many of its rows are real; None where that is not needed.
        prompt_rows: int32, 1 for each row that is of a prompt, else 0; None likewise.
    """

    made_by: "OperatorCall | Exchange | None" = None
    num_rows: "Value | None" = None
    prompt_rows: "Value | None" = None
    _number: int = field(default_factory=lambda: next(_NUMBERS))

    def history(self) -> list["Value"]:
        """Every Value that leads to this one, inputs left out, in the order of the calls."""
        found: dict[Value, None] = {}
        left = [self]
        while left:
            value = left.pop()
            if value.made_by is not None and value not in found:
                found[value] = None
                left += value.made_by.values()
        return sorted(found, key=lambda value: value._number)


@dataclass(frozen=True, eq=False, repr=False)
class OperatorCall:
    """One operator of the library and its operands in order.

    An operand is a Value, a Parameter, or a constant: a NumPy array [n] of int32 or float32.
    """

    operator: Operator
    operands: tuple[Any, ...]

    def values(self) -> list[Value]:
        """Its operands without Parameters and constants."""
        return [operand for operand in self.operands if isinstance(operand, Value)]


@dataclass(frozen=True, eq=False, repr=False)
class Exchange:
    """What the ranks make together of a Value of each: `cell` takes one Tensor and gives one."""

    cell: nn.Cell
    operand: Value

    def values(self) -> list[Value]:
        """The operand."""
        return [self.operand]


def call(operator: Operator, *operands: Any) -> Value:
    """Write down a call of an operator."""
    rows = operands[operator.rows_operand]
    return Value(OperatorCall(operator, operands), rows.num_rows, rows.prompt_rows)


def exchange(cell: nn.Cell, value: Value) -> Value:
    """Write down that the ranks exchange a Value."""
    return Value(Exchange(cell, value), value.num_rows, value.prompt_rows)


class Module(nn.Cell):
    """A part of a network. Called on Values, it writes down what it does and returns a Value."""

    def __call__(self, *values: Any, **named_values: Any) -> Any:
        """Call `construct` as it is: MindSpore would compile a graph."""
        return self.construct(*values, **named_values)
