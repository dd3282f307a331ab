"""What static products of integers need besides the weights, as the operators take it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter

from mindformers_glm.backends.cpu.parameters import as_parameter
from mindformers_glm.backends.cpu.tile_packing import TILE_N
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import StaticActivation
from mindformers_glm.weights.quantized_view import QuantizedView


@dataclass(frozen=True)
class GivenScales:
    """Arrays of csrc/linear_int.cc, to be filled.

    deq_scale: float32 [tile rows, 1, 16]; quant_bias: int32 [tile rows, 16].
    static_input: float32 [2], scale and offset of activations.
    stride: 2 where gate and up tiles alternate.
    """

    deq_scale: np.ndarray
    quant_bias: np.ndarray
    static_input: np.ndarray
    stride: int

    def as_parameters(self) -> dict[str, Parameter]:
        """By their names, in the operator's order."""
        return {
            "deq_scale": as_parameter(self.deq_scale, "float32", "deq_scale"),
            "quant_bias": as_parameter(self.quant_bias, "int32", "quant_bias"),
            "static_input": as_parameter(self.static_input, "float32", "static_input"),
        }

    def put(self, views: Sequence[QuantizedView]) -> None:
        """Take those of all rows.

        Args:
            views: of matrices that are stacked; gated: of the gate and the up projection.
        Raises:
            CheckpointError: they round activations in two ways.
        """
        start = 0
        for half, view in enumerate(views):
            static = view.read_activation()
            assert static is not None, "a matrix without a given scale"
            self._put_input(static, view.name, is_first=half == 0)
            rows = np.arange(view.num_rows) + (0 if self.stride == 2 else start)
            tile = rows // TILE_N * self.stride + (half if self.stride == 2 else 0)
            self.deq_scale[tile, 0, rows % TILE_N] = static.deq_scale
            # Ranks that share the columns add up their results: the first one has the bias, and
            # with it what the offset adds to the sum of all columns.
            is_added = view.columns.start == 0
            self.quant_bias[tile, rows % TILE_N] = static.quant_bias if is_added else 0
            start += view.num_rows

    def _put_input(self, static: StaticActivation, name: str, is_first: bool) -> None:
        numbers = np.array([static.input_scale, static.input_offset], np.float32)
        if not is_first and not np.array_equal(numbers, self.static_input):
            raise CheckpointError(
                f"{name} has another input_scale or input_offset than the matrices beside it, "
                "which multiply the same activations: download the model again."
            )
        self.static_input[:] = numbers
