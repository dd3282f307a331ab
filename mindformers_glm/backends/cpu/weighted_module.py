"""The base of the layers that own weights: their Parameters, and how each is filled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Parameter

from mindformers_glm.backends.cpu import mapped_memory, tile_packing
from mindformers_glm.backends.cpu.allocation import allocate, count_numa_nodes
from mindformers_glm.backends.cpu.linear_methods import LinearWeight
from mindformers_glm.backends.cpu.parameters import LoadInto, as_parameter
from mindformers_glm.backends.cpu.trace import Module


class WeightedModule(Module):
    """A layer with weights.

    The Parameters are allocated, not filled, when the layer is built; the memory is touched only by
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
        """Give each thread's share of the tiles to its own memory node, if there are several."""
        if count_numa_nodes() > 1:
            for array in self.weight_arrays().values():
                mapped_memory.first_touch(array)

    def _add_rows(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """A parameter in row order: the embedding table, norm weights, biases."""
        array = allocate(shape, dtype)
        setattr(self, name, as_parameter(array, dtype, name))
        self._targets[name] = LoadInto(lambda views: convert_stacked(array, dtype, views))

    def _add_norm(self, size: int, has_bias: bool) -> None:
        """The norm in front of a linear layer: its weight, and its bias as a second row."""
        array = allocate((2, size) if has_bias else (size,), "float32")
        name, rows = "layer_norm_weight", array.reshape(-1)
        self.layer_norm_weight = as_parameter(array, "float32", name)
        self._targets[name] = LoadInto(lambda views: convert_stacked(rows, "float32", views))

    def _add_weight(self, weight: LinearWeight) -> tuple[Parameter, ...]:
        """The matrix of a linear layer; returns its Parameters as the operator takes them."""
        for name, parameter in weight.parameters.items():
            setattr(self, name, parameter)
        self._targets |= weight.targets
        return tuple(weight.parameters.values())


def convert_stacked(array: np.ndarray, dtype: str, views: Sequence[Any]) -> None:
    """Fill an array with the rows of all views, one behind the other."""
    start = 0
    for view in views:
        for first, rows in view.row_chunks():
            place = array[start + first : start + first + len(rows)]
            tile_packing.convert(place, rows, dst_dtype=dtype, src_dtype=view.dtype)
        start += view.num_rows
