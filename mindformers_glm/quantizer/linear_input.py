"""The input of linears during calibration, and what methods of rounding want to know of it."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mindformers_glm.quantizer.products import multiply_transposed

_CHUNK_ROWS = 1024


class LinearInput:
    """What the linears of one key (QKV, PROJ, FC1, FC2) are given, of all calibration samples.

    Args:
        x: float32 [rows, channels], behind what is quantized already, itself not rounded.
        sample_rows: the rows of each sample.
    """

    def __init__(self, x: np.ndarray, sample_rows: Sequence[slice]) -> None:
        self.x, self.sample_rows = x, sample_rows

    @cached_property
    def hessian(self) -> np.ndarray:
        """float32 [channels, channels], X^T X: computed when asked for, once for all linears."""
        channels = self.x.shape[1]
        total = np.zeros((channels, channels), np.float32)
        for begin in range(0, len(self.x), _CHUNK_ROWS):
            rows = self.x[begin : begin + _CHUNK_ROWS]
            total += multiply_transposed(rows, rows)
        return total
