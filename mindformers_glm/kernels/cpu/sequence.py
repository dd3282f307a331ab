"""Cells that work on each other's results, as one node of MindSpore's graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindformers_glm.kernels.cpu import library
from mindformers_glm.kernels.cpu.collectives import AllReduce
from mindformers_glm.kernels.cpu.ops import Operator

# An operand that is the result of the stage before, or what the sequence was given first.
PREVIOUS = "previous"
_LAST_RESULT = -1  # in a program: csrc/sequence.cc


@dataclass(frozen=True)
class Stage:
    """One operator and its operands in order: Tensors, or names of the sequence's inputs."""

    operator: Operator
    operands: tuple[Any, ...]


class OperatorCell(Protocol):
    """A Cell of cells.py."""

    def stage(self) -> Stage:
        """How its operator is called."""
        ...


class OperatorSequence(nn.Cell):
    """Runs Cells one after the other as one node of the graph, or one between two AllReduce.

    A node costs MindSpore tens of microseconds, and a layer's operators are seven.

    Args:
        cells: operators of cells.py, and AllReduce where ranks add what they have so far.
        inputs: what the operands call the Tensors that `construct` takes; the first one is also
            what the first operator works on. A node is given those up to the last that it names:
            Parameters come behind what operators behind an AllReduce need.
    """

    def __init__(self, cells: Sequence[OperatorCell | AllReduce], inputs: Sequence[str]) -> None:
        # The Parameters belong to the cells and have their names.
        super().__init__(auto_prefix=False)
        nodes: list[nn.Cell] = []
        stages: list[Stage] = []
        for cell in cells:
            if not isinstance(cell, AllReduce):
                stages.append(cell.stage())
            elif cell.is_split:
                nodes += [_Node(stages, inputs), _Sum(cell)]
                stages = []
        if stages:
            nodes.append(_Node(stages, inputs))
        self.nodes = nn.CellList(nodes, auto_prefix=False)
        self.num_nodes = len(nodes)

    def construct(self, *inputs: Tensor) -> Tensor:
        """The inputs in their order -> the last operator's result, float32."""
        result = inputs[0]
        for node in self.nodes:
            result = node(result, *inputs)
        return result


class _Node(nn.Cell):
    """Some stages as one custom operator (csrc/sequence.cc)."""

    def __init__(self, stages: Sequence[Stage], inputs: Sequence[str]) -> None:
        super().__init__(auto_prefix=False)
        names = (PREVIOUS, *inputs)
        named = {
            names.index(operand)
            for position, stage in enumerate(stages)
            for operand in stage.operands
            if isinstance(operand, str) and (operand != PREVIOUS or position == 0)
        }
        # No more than that: behind an operator that writes its operands, MindSpore copies every
        # Parameter that a node is given, such as the rotary table.
        self.num_inputs = 1 + max(named)
        operands: list[Tensor] = []
        program = [len(stages)]
        rows_from = 0  # the input with as many rows as the result
        for position, stage in enumerate(stages):
            places = []
            for operand in stage.operands:
                if not isinstance(operand, str):
                    operands.append(operand)
                    places.append(self.num_inputs + len(operands) - 1)
                elif operand == PREVIOUS and position > 0:
                    places.append(_LAST_RESULT)
                else:
                    places.append(names.index(operand))
            operator = stage.operator
            number = library.operator_number(operator.symbol)
            program += [number, operator.rows_operand, operator.width, len(places), *places]
            if places[operator.rows_operand] != _LAST_RESULT:
                rows_from = places[operator.rows_operand]
        self.operands = (*operands, Tensor(np.array(program, np.int32)))
        width = stages[-1].operator.width
        self.run = ops.Custom(
            f"{library.library_path()}:glm_sequence",
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


class _Sum(nn.Cell):
    """AllReduce as a node: what the node before has made, and nothing else."""

    def __init__(self, all_reduce: AllReduce) -> None:
        super().__init__()
        self.all_reduce = all_reduce

    def construct(self, previous: Tensor, *_: Tensor) -> Tensor:
        return self.all_reduce(previous)
