"""A Cell that holds weights of a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import nn


@dataclass(frozen=True)
class LoadInto:
    """Where one parameter's tensors go: `load` is given them in the order of its weight rule."""

    load: Callable[[Sequence[Any]], None]


class WeightedCell(nn.Cell):
    """Base of the operator Cells that own Parameters.

    The Parameters are allocated, not filled, when the Cell is built; the memory is touched only by
    `load`, so that a weight is never in memory twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._targets: dict[str, LoadInto] = {}

    def weight_targets(self) -> dict[str, LoadInto]:
        """Local parameter name, as the weight rules call it -> how it is filled."""
        return self._targets

    def weight_arrays(self) -> dict[str, np.ndarray]:
        """Local parameter name -> its memory as a NumPy array, which can be written to."""
        arrays = {}
        for name, parameter in self.parameters_and_names(expand=False):
            arrays[name] = parameter.asnumpy()
            if arrays[name].ctypes.data != parameter.data_ptr():
                raise RuntimeError(f"MindSpore copied the memory of parameter {name}")
        return arrays

    def place_weights(self) -> None:
        """Choose the memory node of each part before it is filled; by default the system does."""

    def num_weight_bytes(self) -> int:
        """Bytes of this Cell's own Parameters in memory."""
        return sum(parameter.nbytes for parameter in self.parameters_dict(recurse=False).values())
