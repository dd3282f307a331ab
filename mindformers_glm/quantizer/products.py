"""Large products through SciPy's BLAS.

NumPy 1.26's own OpenBLAS (0.3.23) takes AVX2 kernels on processors that are newer than it; SciPy's
was five times as fast on one with AVX512 (docs/lab_notes.md). MindSpore requires SciPy.
"""

import numpy as np
from scipy.linalg import blas


def multiply_transposed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left.T @ right, of float32 [n, a] and [n, b]: [a, b]."""
    if not len(left):
        return np.zeros((left.shape[1], right.shape[1]), np.float32)
    # BLAS counts by columns: right.T @ left, of which the transpose is what is wanted. The copy
    # is of the smaller one.
    return blas.sgemm(1.0, right.T, np.asfortranarray(left.T), trans_b=1).T


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right.T, of [a, n] and [b, n]: [a, b]; float32, or float64 where one of them is."""
    dtype = np.result_type(left, right)
    gemm = blas.sgemm if dtype == np.float32 else blas.dgemm
    transposed = [np.asfortranarray(array.T, dtype) for array in (right, left)]
    return gemm(1.0, *transposed, trans_a=1).T
