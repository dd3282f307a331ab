"""Cells that work on each other's results, as one node of MindSpore's graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.collectives import AllReduce
from mindformers_glm.backends.cpu.operators import Operator

# Operands that change from stage to stage. Both are what the sequence was given first, until stages
# have made others: the result of the stage before, and of the last stage that named RESIDUAL, for
# such a stage adds to the residual stream.
PREVIOUS = "previous"
RESIDUAL = "residual"
_OUTPUT = -1  # in a program: csrc/program.cc


@dataclass(frozen=True)
class Stage:
    """One operator and its operands in order.

    An operand is a Tensor, a constant (NumPy array [n] of int32 or float32), or the name of an
    input of the sequence.

    Attributes:
        starts_residual: whether the residual stream is its result, summed over the ranks where an
            AllReduce follows.
    """

    operator: Operator
    operands: tuple[Any, ...]
    starts_residual: bool = False

    @property
    def names(self) -> set[str]:
        """Its operands that have names."""
        return {operand for operand in self.operands if isinstance(operand, str)}

    @property
    def makes_residual(self) -> bool:
        """Whether the residual stream is its result from here on."""
        return self.starts_residual or RESIDUAL in self.names


class OperatorCell(Protocol):
    """A Cell of cells.py."""

    def stage(self) -> Stage:
        """How its operator is called."""
        ...


class OperatorSequence(nn.Cell):
    """Runs Cells one after the other as one node of the graph, or some between two AllReduce.

    A node costs MindSpore about 100 microseconds beside weights that drive it out of the caches,
    and 40 layers are 280 operators.

    Args:
        cells: operators of cells.py, and AllReduce where ranks add what they have so far.
        inputs: what the operands call the Tensors that `construct` takes behind the first one. A
            node is given those up to the last that it names: Parameters come behind what operators
            behind an AllReduce need.
    """

    def __init__(self, cells: Sequence[OperatorCell | AllReduce], inputs: Sequence[str]) -> None:
        # The Parameters belong to the cells and have their names.
        super().__init__(auto_prefix=False)
        nodes: list[nn.Cell] = []
        for part in _split_into_nodes(cells):
            if isinstance(part, AllReduce):
                nodes.append(_Sum(part, nodes[-1].makes_residual))
            else:
                nodes.append(_Node(part, inputs))
        self.nodes = nn.CellList(nodes, auto_prefix=False)

    @staticmethod
    def count_nodes(cells: Sequence[OperatorCell | AllReduce]) -> int:
        """How many nodes of the graph these become."""
        return len(_split_into_nodes(cells))

    def construct(self, first: Tensor, *inputs: Tensor) -> Tensor:
        """What the first operator works on, the inputs in order -> the last one's result."""
        result = residual = first
        for node in self.nodes:
            result = node(result, residual, *inputs)
            if node.makes_residual:
                residual = result
        return result


def _split_into_nodes(
    cells: Sequence[OperatorCell | AllReduce],
) -> list[list[Stage] | AllReduce]:
    """All stages of one rank; of several, those up to each sum over the ranks, and the sums."""
    is_split = any(isinstance(cell, AllReduce) and cell.is_split for cell in cells)
    parts: list[list[Stage] | AllReduce] = []
    stages: list[Stage] = []
    for cell in cells:
        if isinstance(cell, AllReduce):
            if cell.is_split:
                parts += [stages, cell] if stages else [cell]
                stages = []
            continue
        stages.append(cell.stage())
        # A node has one result, and the next nodes need the residual stream.
        if is_split and stages[-1].makes_residual:
            parts.append(stages)
            stages = []
    return [*parts, stages] if stages else parts


class _Node(nn.Cell):
    """Some stages as one custom operator (csrc/program.cc)."""

    def __init__(self, stages: Sequence[Stage], inputs: Sequence[str]) -> None:
        super().__init__(auto_prefix=False)
        self.makes_residual = stages[-1].makes_residual
        names = (PREVIOUS, RESIDUAL, *inputs)
        sources = _find_sources(stages)
        named = {
            names.index(name)
            for stage, made_by in zip(stages, sources, strict=True)
            for name in stage.names - made_by.keys()
        }
        # No more than that: behind an operator that writes its operands, MindSpore copies every
        # Parameter that a node is given, such as the rotary table.
        self.num_inputs = 1 + max(named)
        operands = [operand for stage in stages for operand in stage.operands]
        tensors = [operand for operand in operands if isinstance(operand, Tensor)]
        constants = {
            _key(operand): operand for operand in operands if isinstance(operand, np.ndarray)
        }
        program = [len(constants)]
        for constant in constants.values():
            program += [int(constant.dtype == np.float32), len(constant)]
            program += constant.view(np.int32).tolist()
        program.append(len(stages))
        places = _choose_places(sources)
        next_tensor = count(self.num_inputs)
        constant_numbers = dict(zip(constants, count(self.num_inputs + len(tensors))))
        rows_from = 0  # the input with as many rows as the result
        for stage, made_by, place in zip(stages, sources, places, strict=True):
            numbers = []
            for operand in stage.operands:
                if isinstance(operand, Tensor):
                    numbers.append(next(next_tensor))
                elif isinstance(operand, np.ndarray):
                    numbers.append(constant_numbers[_key(operand)])
                elif operand in made_by:
                    numbers.append(-1 - places[made_by[operand]])
                else:
                    numbers.append(names.index(operand))
            operator = stage.operator
            number = library.operator_number(operator.symbol)
            program += [number, operator.rows_operand, operator.width, place]
            program += [len(numbers), *numbers]
            if numbers[operator.rows_operand] >= 0:
                rows_from = numbers[operator.rows_operand]
        self.operands = (*tensors, Tensor(np.array(program, np.int32)))
        width = stages[-1].operator.width
        self.run = ops.Custom(
            f"{library.library_path()}:glm_program",
            out_shape=lambda *shapes: [shapes[rows_from][0], width],
            out_dtype=lambda *_: ms.float32,
            func_type="aot",
        )
        # PYNATIVE_MODE caches the output's shape by symbol, attributes and inputs, not by
        # `out_shape`: an attribute keeps different programs apart.
        self.run.add_prim_attr("program", str(program))
        if any(stage.operator.writes_operands for stage in stages):
            # Without this, the graph compiler merges equal calls and drops those whose result is
            # unused.
            self.run.add_prim_attr("side_effect_mem", True)

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs[: self.num_inputs], *self.operands)


def _key(constant: np.ndarray) -> tuple[str, bytes]:
    """The same for equal constants, which a program holds once."""
    return constant.dtype.str, constant.tobytes()


def _find_sources(stages: Sequence[Stage]) -> list[dict[str, int]]:
    """Return for each stage which earlier one has made what PREVIOUS and RESIDUAL are there.

    Those that are missing are what the node was given.
    """
    sources: list[dict[str, int]] = []
    made_by: dict[str, int] = {}
    for position, stage in enumerate(stages):
        sources.append({name: maker for name, maker in made_by.items() if name in stage.names})
        made_by[PREVIOUS] = position
        if stage.makes_residual:
            made_by[RESIDUAL] = position
    return sources


def _choose_places(sources: Sequence[dict[str, int]]) -> list[int]:
    """Return where each stage's result is kept until the last stage has read it."""
    last_readers = list(range(len(sources)))
    for reader, made_by in enumerate(sources):
        for maker in made_by.values():
            last_readers[maker] = reader
    places: list[int] = []
    for stage in range(len(sources) - 1):
        taken = {place for maker, place in enumerate(places) if last_readers[maker] >= stage}
        places.append(next(place for place in count() if place not in taken))
    return [*places, _OUTPUT]


class _Sum(nn.Cell):
    """AllReduce as a node: what the node before has made, and nothing else."""

    def __init__(self, all_reduce: AllReduce, makes_residual: bool) -> None:
        super().__init__()
        self.all_reduce = all_reduce
        self.makes_residual = makes_residual

    def construct(self, previous: Tensor, *_: Tensor) -> Tensor:
        return self.all_reduce(previous)
