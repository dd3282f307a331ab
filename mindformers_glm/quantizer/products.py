"""Large float32 products through SciPy's BLAS.

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
