"""Rounding of float32 values to the shorter floating-point types."""

import numpy as np


def round_to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to nearest, ties to even, and widen back.

    Args:
        values: float32, finite, any shape.
        dtype: "float32", "float16" or "bfloat16".
    Returns:
        float32 of the same shape.
    """
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        return (
            ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
        )
    return values
