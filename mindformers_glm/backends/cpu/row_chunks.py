"""Rows of checkpoint tensors on their way into a matrix that stacks them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RowChunk:
    """Rows of a checkpoint tensor and their place: from row_offset on, in a half if gated.

    first_row: of the tensor.
    """

    view: Any
    first_row: int
    rows: np.ndarray
    row_offset: int
    gated_half: int | None

    @property
    def dtype(self) -> str:
        return str(self.view.dtype)

    def row_maxima(self) -> np.ndarray | None:
        """See TensorView."""
        maxima: np.ndarray | None = self.view.row_maxima(
            self.first_row, self.first_row + len(self.rows)
        )
        return maxima


def row_chunks(views: Sequence[Any], is_gated: bool) -> Iterator[RowChunk]:
    """All rows of tensors that are stacked on axis 0, a bounded number of bytes at a time.

    Args:
        views: where gated, the gate's rows and then the up projection's.
    """
    if is_gated:
        for half, view in enumerate(views):
            for first, rows in view.row_chunks():
                yield RowChunk(view, first, rows, first, half)
        return
    start = 0
    for view in views:
        for first, rows in view.row_chunks():
            yield RowChunk(view, first, rows, start + first, None)
        start += view.num_rows
