"""NumPy memory as MindSpore Parameters and Tensors, without a copy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import np_dtype

_VIEWS = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np_dtype.bfloat16,
    "uint8": np.uint8,
    "int32": np.int32,
}


@dataclass(frozen=True)
class LoadInto:
    """Where one parameter's tensors go: `load` is given them in the order of its weight rule."""

    load: Callable[[Sequence[Any]], None]


def as_parameter(array: np.ndarray, dtype: str, name: str) -> Parameter:
    """A Parameter whose storage is the array's own memory, which it keeps alive.

    Args:
        array: contiguous; bfloat16 as uint16 (allocation.allocate).
    """
    # Parameter copies a tensor that anything else refers to, and also when it is given keyword
    # arguments: hence the nameless temporary and the attributes set afterwards.
    parameter = Parameter(Tensor.from_numpy(array.view(_VIEWS[dtype])))
    parameter.name = name
    parameter.requires_grad = False
    _check_is_shared(parameter, array)
    return parameter


def replace_array(parameter: Parameter, array: np.ndarray) -> None:
    """Give a Parameter of `as_parameter` another array, of any shape, for its memory."""
    parameter.set_data(Tensor.from_numpy(array.view(parameter.asnumpy().dtype)), slice_shape=True)
    _check_is_shared(parameter, array)


def _check_is_shared(parameter: Parameter, array: np.ndarray) -> None:
    if parameter.data_ptr() != array.ctypes.data:
        raise RuntimeError(f"MindSpore copied the memory of parameter {parameter.name}")
