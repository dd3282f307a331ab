"""A trace as Cells that MindSpore compiles: every node of the graph runs a program of operators.

A node costs MindSpore about 100 microseconds beside weights that drive it out of the caches, and 40
layers are 280 operators: so all of them are one node, or all between two exchanges of the ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.trace import Exchange, OperatorCall, Value

_OUTPUT = -1  # in a program: csrc/program.cc


class Graph(nn.Cell):
    """A trace as one graph of MindSpore.

    Args:
        inputs: the Values that the trace began with; the caller names them.
        result: the Value that the graph makes.

    Attributes:
        input_names: the inputs that `construct` takes, in order: those that the result depends on.
        nodes: the nodes of MindSpore's graph. Each is given what the one before has made, one
            earlier result, and the inputs. These are alike for all, because MindSpore compiles
            twice as long where every node is given another choice of Tensors.
    """

    def __init__(self, inputs: Mapping[str, Value], result: Value) -> None:
        # Without prefixes: the Parameters have their names.
        super().__init__(auto_prefix=False)
        parts = _split_into_nodes(result.history())
        needed = {value for part in parts for value in _given_to(part)}
        self.input_names = [name for name, value in inputs.items() if value in needed]
        there_are = [inputs[name] for name in self.input_names]
        saved = previous = there_are[0]
        nodes: list[nn.Cell] = []
        for number, part in enumerate(parts):
            given = [previous, saved, *there_are]
            previous = part[-1]
            # The next node is given it as `previous`.
            is_saved = any(previous in _given_to(later) for later in parts[number + 2 :])
            nodes.append(_make_node(part, given, is_saved))
            saved = previous if is_saved else saved
        self.nodes = nn.CellList(nodes, auto_prefix=False)

    def construct(self, *inputs: Tensor) -> Tensor:
        """The inputs that `input_names` names -> the result."""
        previous = saved = inputs[0]
        for node in self.nodes:
            previous = node(previous, saved, *inputs)
            if node.is_saved:
                saved = previous
        return previous


def _split_into_nodes(history: Sequence[Value]) -> list[list[Value]]:
    """Cut a trace into exchanges, and operators of which the last one's result is needed later.

    A node has one result. So it ends before an exchange, and also where it has made the residual
    stream that an operator behind an exchange adds to.
    """
    ends = {
        value
        for value, following in zip(history, [*history[1:], None], strict=True)
        if following is None or _is_exchange(value) or _is_exchange(following)
    }
    while True:
        parts, begin = [], 0
        for position, value in enumerate(history):
            if value in ends:
                parts.append(list(history[begin : position + 1]))
                begin = position + 1
        needed_elsewhere = {value for part in parts for value in _given_to(part)} - ends
        cuts = {value for value in needed_elsewhere if value.made_by is not None}
        if not cuts:
            return parts
        ends |= cuts


def _is_exchange(value: Value) -> bool:
    return isinstance(value.made_by, Exchange)


def _given_to(part: Sequence[Value]) -> list[Value]:
    """The Values that a part takes from outside it, in the order in which they are first needed."""
    operands = [operand for made in part if made.made_by for operand in made.made_by.values()]
    return list(dict.fromkeys(operand for operand in operands if operand not in part))


def _make_node(part: Sequence[Value], given: Sequence[Value], is_saved: bool) -> nn.Cell:
    made_by = part[0].made_by
    if isinstance(made_by, Exchange):
        assert made_by.operand is given[0], "an exchange is of what has just been made"
        return _ExchangeNode(made_by.cell, is_saved)
    return _OperatorNode(part, given, is_saved)


class _ExchangeNode(nn.Cell):
    """What the ranks make together of what the node before has made."""

    def __init__(self, cell: nn.Cell, is_saved: bool) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.is_saved = is_saved

    def construct(self, previous: Tensor, *_: Tensor) -> Tensor:
        """What is given to it -> what was exchanged."""
        return self.cell(previous)


class _OperatorNode(nn.Cell):
    """Some operators as one custom operator of MindSpore (csrc/program.cc).

    Args:
        part: their results.
        given: what `construct` will be given.
        is_saved: whether the last one's result is for later nodes than the next.
    """

    def __init__(self, part: Sequence[Value], given: Sequence[Value], is_saved: bool) -> None:
        super().__init__(auto_prefix=False)
        self.is_saved = is_saved
        calls = [made.made_by for made in part if isinstance(made.made_by, OperatorCall)]
        operands = [operand for call in calls for operand in call.operands]
        # The same Parameter, such as the rotary table, is handed on once.
        parameters = {id(one): one for one in operands if isinstance(one, Parameter)}
        constants = {_key(one): one for one in operands if isinstance(one, np.ndarray)}
        places = _choose_places(part)
        # How the program names an operand: -1 - p for what is kept in place p, else by number.
        names: dict[Any, int] = {value: -1 - place for value, place in places.items()}
        for number, key in enumerate([*given, *parameters, *constants]):
            names.setdefault(key, number)
        assert all(_key(one) in names for one in operands), "two earlier results would be needed"
        program = [len(constants)]
        for constant in constants.values():
            program += [int(constant.dtype == np.float32), len(constant)]
            program += constant.view(np.int32).tolist()
        program.append(len(calls))
        for made, call in zip(part, calls, strict=True):
            operator = call.operator
            number = library.operator_number(operator.symbol)
            program += [number, operator.rows_operand, operator.width, places[made]]
            program += [len(call.operands), *(names[_key(operand)] for operand in call.operands)]
        self.operands = (*parameters.values(), Tensor(np.array(program, np.int32)))
        self.run = _custom_operator(
            program,
            rows_from=given.index(_find_rows(part[-1], given)),
            width=calls[-1].operator.width,
            writes_operands=any(call.operator.writes_operands for call in calls),
        )

    def construct(self, *given: Tensor) -> Tensor:
        """What is given to it -> the last operator's result."""
        return self.run(*given, *self.operands)


def _custom_operator(
    program: Sequence[int], rows_from: int, width: int, writes_operands: bool
) -> Callable[..., Tensor]:
    """glm_program with a program; its result has the rows of the input number `rows_from`."""
    run = ops.Custom(
        f"{library.library_path()}:glm_program",
        out_shape=lambda *shapes: [shapes[rows_from][0], width],
        out_dtype=lambda *_: ms.float32,
        func_type="aot",
    )
    # PYNATIVE_MODE caches the output's shape by symbol, attributes and inputs, not by `out_shape`:
    # an attribute keeps different programs apart.
    run.add_prim_attr("program", str(program))
    if writes_operands:
        # Without this, the graph compiler merges equal calls and drops those whose result is
        # unused.
        run.add_prim_attr("side_effect_mem", True)
    return run


def _find_rows(value: Value, given: Sequence[Value]) -> Value:
    """The one of the given Values that has as many rows as this one."""
    while value not in given:
        assert isinstance(value.made_by, OperatorCall)
        rows_from = value.made_by.operands[value.made_by.operator.rows_operand]
        assert isinstance(rows_from, Value)
        value = rows_from
    return value


def _key(operand: Any) -> Any:
    """What tells an operand from others: equal constants are one, which a program holds once."""
    if isinstance(operand, np.ndarray):
        return operand.dtype.str, operand.tobytes()
    return operand if isinstance(operand, Value) else id(operand)


def _choose_places(part: Sequence[Value]) -> dict[Value, int]:
    """Where each result of a node is kept until the last operator that reads it has run."""
    last_reader = {
        operand: position
        for position, made in enumerate(part)
        for operand in (made, *(made.made_by.values() if made.made_by else ()))
    }
    places: dict[Value, int] = {}
    for position, made in enumerate(part[:-1]):
        taken = {place for value, place in places.items() if last_reader[value] >= position}
        places[made] = next(place for place in count() if place not in taken)
    return {**places, part[-1]: _OUTPUT}
