"""A tensor of a checkpoint, or a piece of one, as it lies in the file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from mindformers_glm.core.sharding import widen

# What a rank's own file calls the largest magnitude of each whole row, of a tensor whose columns
# are cut: the tensor's name and this.
ROW_MAXIMA = ".row_maxima"
_CHUNK_BYTES = 64 * 2**20  # how much of a tensor is in memory while it is copied


@dataclass(frozen=True)
class CutColumns:
    """Whence the columns of a view were taken.

    rows: the same rows with all columns that are stored; the first one begins a group.
    taken: which of the columns.
    row_maxima: float32 [rows], the largest magnitudes where `rows` lacks columns of the whole
        tensor; None: it has all.
    """

    rows: np.ndarray
    taken: range
    row_maxima: np.ndarray | None


@dataclass(frozen=True)
class TensorView:
    """A tensor, or a piece of one, as it lies in the file: read-only, possibly unaligned.

    data: float32, float16, or uint16 holding the bits of bfloat16; where only some columns were
        asked for, the columns between are skipped (strides).
    release_rows: drops the pages of rows [begin, end) from memory.
    cut: where only some columns were asked for.
    kept: the columns of `data` that were asked for, where there are more (`widened`).
    """

    name: str
    dtype: str
    data: np.ndarray
    release_rows: Callable[[int, int], None]
    cut: CutColumns | None = None
    kept: range | None = None

    @property
    def num_rows(self) -> int:
        """Rows, or elements where there is one axis."""
        return len(self.data)

    @property
    def num_bytes(self) -> int:
        """Bytes that are read of the file."""
        return self.data.nbytes

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that it is of."""
        return (self.name,)

    def row_chunks(
        self, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows) over rows [begin, end), a bounded number of bytes at a time.

        The pages of a chunk are dropped when the next one is asked for: whoever copies a tensor
        this way never has much of the file in memory beside the copy. Chunks are contiguous: where
        columns are skipped, they are copied.
        """
        end = len(self.data) if end is None else end
        row_bytes = self.data.strides[0]  # in the file, with skipped columns
        step = max(_CHUNK_BYTES // max(row_bytes, 1), 1)
        for first in range(begin, end, step):
            last = min(first + step, end)
            rows = self.data[first:last]
            yield first, rows if rows.flags.c_contiguous else rows.copy()
            self.release_rows(first, last)

    def widened(self, group: int) -> "TensorView":
        """The view with its columns up to the borders of groups of `group`."""
        if self.cut is None:
            return self
        taken = self.cut.taken
        wide = widen(taken, self.cut.rows.shape[1], group)
        kept = range(taken.start - wide.start, taken.stop - wide.start)
        return replace(self, data=self.cut.rows[:, wide.start : wide.stop], kept=kept)

    def row_maxima(self, begin: int, end: int) -> np.ndarray | None:
        """The largest magnitude of each row [begin, end) of the whole tensor, float32.

        None where the view has all columns.
        """
        if self.cut is None:
            return None
        if self.cut.row_maxima is not None:
            return self.cut.row_maxima[begin:end]
        return find_row_maxima(self.cut.rows[begin:end], self.dtype)


def find_row_maxima(rows: np.ndarray, dtype: str) -> np.ndarray:
    """The largest magnitude of each row, float32; a NaN counts as larger than all numbers.

    Args:
        rows: of at least one column; bfloat16 as uint16.
    """
    is_long = dtype == "float32"
    bits = rows.view(np.uint32 if is_long else np.uint16)
    signed = rows.view(np.int32 if is_long else np.int16)
    largest_positive = np.maximum(signed.max(axis=1), 0).astype(bits.dtype)
    # As unsigned ones the negative numbers are above the others, in the order of magnitudes.
    largest_negative = bits.max(axis=1) & bits.dtype.type(0x7FFFFFFF if is_long else 0x7FFF)
    largest = np.maximum(largest_positive, largest_negative)
    if dtype == "bfloat16":
        return (largest.astype(np.uint32) << 16).view(np.float32)
    return largest.view(rows.dtype).astype(np.float32)
