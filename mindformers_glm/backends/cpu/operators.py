"""The library's operators on NumPy arrays, one at a time and without MindSpore.

MindSpore calls them by the same symbols and the same convention (csrc/aot.h).
"""

import ctypes

import numpy as np

from mindformers_glm.backends.cpu import library

_DTYPE_NAMES = {
    "float32": b"float32",
    "float16": b"float16",
    "uint16": b"bfloat16",  # as allocation.allocate has it
    "int32": b"int32",
}


def call_operator(symbol: str, num_rows: int, width: int, *operands: np.ndarray) -> np.ndarray:
    """Call an operator by its C symbol; tests/kernels/reference.py defines what each computes.

    Args:
        operands: contiguous, in the operator's order; caches are written to.
    Returns:
        float32 [num_rows, width].
    Raises:
        RuntimeError: it refuses an operand; why, it says on stderr.
    """
    output = np.zeros((num_rows, width), np.float32)
    arrays = [*(np.ascontiguousarray(operand) for operand in operands), output]
    count = len(arrays)
    shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    code = getattr(library.load(), symbol)(
        count,
        (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
        (ctypes.c_int * count)(*(array.ndim for array in arrays)),
        (ctypes.c_void_p * count)(*(ctypes.addressof(shape) for shape in shapes)),
        (ctypes.c_char_p * count)(*(_DTYPE_NAMES[array.dtype.name] for array in arrays)),
        None,
        None,
    )
    if code != 0:
        raise RuntimeError(f"the operator {symbol} refused its arguments; the line above says why")
    return output
