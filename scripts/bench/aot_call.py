"""Calls an operator on NumPy arrays the way MindSpore calls it: for tests and benchmarks."""

import ctypes
from collections.abc import Callable

import numpy as np

from mindformers_glm.backends.cpu import library

_DTYPE_NAMES = {"f4": b"float32", "u2": b"bfloat16", "f2": b"float16", "i4": b"int32"}


class KernelRefusedError(Exception):
    """The operator did not accept its arguments; it has said why on stderr."""


def call(symbol: str, *inputs: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Run `symbol` and return `out`; uint16 arrays stand for bfloat16.

    Raises:
        KernelRefusedError: the operator returned an error code.
    """
    prepare(symbol, *inputs, out=out)()
    return out


def prepare(symbol: str, *inputs: np.ndarray, out: np.ndarray) -> Callable[[], None]:
    """What `call` does, for later: benchmarks keep the preparation out of what they time."""
    arrays = [*inputs, out]
    count = len(arrays)
    shape_pointer = ctypes.POINTER(ctypes.c_int64)
    shapes = [(ctypes.c_int64 * max(a.ndim, 1))(*a.shape) for a in arrays]
    dtypes = [_DTYPE_NAMES.get(a.dtype.str[1:], a.dtype.name.encode()) for a in arrays]
    function = getattr(library.load(), symbol)
    arguments = (
        count,
        (ctypes.c_void_p * count)(*(a.ctypes.data for a in arrays)),
        (ctypes.c_int * count)(*(a.ndim for a in arrays)),
        (shape_pointer * count)(*(ctypes.cast(s, shape_pointer) for s in shapes)),
        (ctypes.c_char_p * count)(*dtypes),
        None,
        None,
    )

    def run(arrays: list[np.ndarray] = arrays) -> None:  # holds on to the memory pointed to
        if function(*arguments) != 0:
            raise KernelRefusedError(symbol)

    return run
