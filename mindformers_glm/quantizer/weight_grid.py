"""The integers that weights are rounded to, and what each stands for: scales and zero points.

Source: the parameters of msModelSlim 26.1.0 (quant_funcs), by its outputs: symmetric ranges reach
from -max to max, asymmetric ones hold zero, a scale is at least 2**-23.
"""

from dataclasses import dataclass

import numpy as np

_SMALLEST_SCALE = np.float32(2.0**-23)


@dataclass(frozen=True)
class WeightGrid:
    """How finely weights are rounded.

    bits: 4 or 8.
    group_size: columns that share a scale; None: the whole row.
    is_symmetric: there are no zero points.
    """

    bits: int
    group_size: int | None = None
    is_symmetric: bool = True

    @property
    def lowest(self) -> int:
        """The smallest code; -lowest - 1 is the largest."""
        return -(2 ** (self.bits - 1))

    def groups(self, num_columns: int) -> np.ndarray:
        """int64 [columns]: the group of each column, in their own order."""
        return np.arange(num_columns) // (self.group_size or num_columns)

    def fit(
        self, smallest: np.ndarray, largest: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Scales and zero points for ranges of weights, arrays of any one shape."""
        low, high = np.minimum(smallest, 0), np.maximum(largest, 0)
        if self.is_symmetric:
            scales = np.maximum(-low, high) / np.float32(-self.lowest - 1)
            return np.maximum(scales, _SMALLEST_SCALE), None
        scales = np.maximum((high - low) / np.float32(2**self.bits - 1), _SMALLEST_SCALE)
        return scales, np.rint(-low / scales) + np.float32(self.lowest)

    def codes(
        self, weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None
    ) -> np.ndarray:
        """float32 whole numbers of the shape of the weights, with which the others broadcast."""
        codes = weights / scales
        if zeros is not None:
            codes += zeros
        np.rint(codes, out=codes)
        return np.clip(codes, self.lowest, -self.lowest - 1, out=codes)

    def round_trip(self, weights: np.ndarray) -> np.ndarray:
        """What is left of float32 [rows, columns] once rounded to nearest and read back.

        The last group may be shorter.
        """
        rows, columns = weights.shape
        size = min(self.group_size or columns, columns)
        whole = columns - columns % size
        parts = [self._round_groups(weights[:, :whole].reshape(rows, -1, size))]
        if whole < columns:
            parts.append(self._round_groups(weights[:, whole:].reshape(rows, 1, -1)))
        return np.concatenate([part.reshape(rows, -1) for part in parts], axis=1)

    def _round_groups(self, weights: np.ndarray) -> np.ndarray:
        low, high = weights.min(axis=2, keepdims=True), weights.max(axis=2, keepdims=True)
        scales, zeros = self.fit(low, high)
        codes = self.codes(weights, scales, zeros)
        if zeros is not None:
            codes -= zeros
        codes *= scales
        return codes
