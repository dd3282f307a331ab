"""The range of activations whose 256 steps leave the least squared error, by a histogram.

Source: PyTorch's `HistogramObserver` for the search, which is caffe2's NormMinimization; how its
versions up to 2.4 let a histogram grow sample by sample, and msModelSlim 26.1.0, which still does.
"""

from dataclasses import dataclass

import numpy as np

_NUM_BINS, _NUM_LEVELS = 2048, 256
_QUANTILE_STEP = 1e-5  # by which the search lets values go at either end
_CHUNK_ROWS = 1024
_PARTS = 128  # of a bin, between which a histogram that grows can be cut


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each of `_NUM_BINS` bins of equal width.

    counts: float64 [bins]; parts of values once it has grown.
    low, high: float32, where the first bin begins and the last one ends.
    """

    counts: np.ndarray
    low: np.float32
    high: np.float32

    @classmethod
    def of(cls, x: np.ndarray, is_tools: bool = False) -> "Histogram":
        """All values of float32 [rows, channels].

        Args:
            is_tools: see `with_sample`.
        """
        low, high = x.min(), x.max()
        return cls(_count(x, *(_tools_ends(x, low, high) if is_tools else (low, high))), low, high)

    def with_sample(self, x: np.ndarray) -> "Histogram":
        """The same and further values, as msModelSlim has it.

        The new bins are whole multiples of a part of the old ones, and begin anywhere: an old bin
        is spread evenly, and its parts go where they fall in steps of one. Values are counted
        between whole numbers, though the bins are taken for those between `low` and `high`.
        """
        if self.low == self.high:
            return Histogram.of(x, is_tools=True)
        low, high = np.minimum(self.low, x.min()), np.maximum(self.high, x.max())
        part = (self.high - self.low) / np.float32(_NUM_BINS * _PARTS)
        covered = np.float32(_NUM_BINS) * part
        num_parts = int(np.ceil((high - low) / covered))
        first = int(np.rint((self.low - low) / part))
        high = high + (np.float32(num_parts) * covered - (high - low))
        counts = self.counts
        if (low, high) != (self.low, self.high):
            counts = self._spread(num_parts, first)
        # The tool's counts are float32.
        added = _count(x, *_tools_ends(x, low, high)).astype(np.float32)
        return Histogram((added + counts.astype(np.float32)).astype(np.float64), low, high)

    def _spread(self, num_parts: int, first: int) -> np.ndarray:
        """Counts in bins of so many parts, the first of which has `first` parts before the old."""
        up_to = np.concatenate([[0], np.repeat(self.counts, _PARTS).cumsum()])
        # Of old parts alone: where the range has grown a thousandfold, those of new bins are 2 GB.
        ends = np.arange(1, _NUM_BINS + 1) * num_parts - first
        sums = up_to[ends.clip(0, len(up_to) - 1)]
        before = np.concatenate([[0], sums[:-1]]).astype(np.float32)
        return (sums - before) / _PARTS

    def search_range(self) -> tuple[np.float32, np.float32]:
        """The range with the least squared error, from a border of a bin to another.

        From both ends values are let go, `_QUANTILE_STEP` of them at a time, where more bins are
        won; it ends when the error grows.

        Returns:
            Minimum and maximum.
        """
        if self.low == self.high:
            return self.low, self.high
        bin_width = (self.high - self.low) / np.float32(_NUM_BINS)
        first, last = _search_bins(self.counts, float(self.high - self.low) / _NUM_BINS)
        return (
            self.low + bin_width * np.float32(first),
            self.low + bin_width * np.float32(last + 1),
        )


def _count(x: np.ndarray, low: np.float32, high: np.float32) -> np.ndarray:
    """float64 [bins], of the values from low to high; the largest is in the last bin."""
    counts = np.zeros(_NUM_BINS, np.int64)
    if low == high:
        return counts.astype(np.float64)
    for begin in range(0, len(x), _CHUNK_ROWS):
        rows = x[begin : begin + _CHUNK_ROWS]
        rows = rows[(rows >= low) & (rows <= high)]
        bins = ((rows - low) / (high - low) * np.float32(_NUM_BINS)).astype(np.int64)
        counts += np.bincount(np.minimum(bins, _NUM_BINS - 1), minlength=_NUM_BINS)
    return counts.astype(np.float64)


def _tools_ends(x: np.ndarray, low: np.float32, high: np.float32) -> tuple[np.float32, np.float32]:
    """Between which msModelSlim counts: it cuts off what is behind the point of both.

    PyTorch's histc, which it calls, takes two zeros for the range of the values, and widens a
    range of one number by one to both sides.
    """
    begin, end = np.trunc(low), np.trunc(high)
    if begin == end == 0:
        begin, end = x.min(), x.max()
    if begin == end:
        begin, end = begin - np.float32(1), end + np.float32(1)
    return begin, end


def _search_bins(counts: np.ndarray, bin_width: float) -> tuple[int, int]:
    total, sums = float(counts.sum()), counts.cumsum().tolist()
    let_go_low, kept_high = 0.0, 1.0
    first, last, least = 0, _NUM_BINS - 1, np.inf
    while let_go_low < kept_high:
        next_low, next_high = let_go_low + _QUANTILE_STEP, kept_high - _QUANTILE_STEP
        left, right = first, last
        while left < last and sums[left] < next_low * total:
            left += 1
        while right > first and sums[right] > next_high * total:
            right -= 1
        if left - first > last - right:
            let_go_low, right = next_low, last
        else:
            kept_high, left = next_high, first
        if (left, right) == (first, last):
            continue
        error = _squared_error(counts, bin_width, left, right)
        if error > least:
            break
        first, last, least = left, right, error
    return first, last


def _squared_error(counts: np.ndarray, bin_width: float, first: int, last: int) -> float:
    """Of values that lie evenly in their bins, when bins first to last are cut into 256 steps.

    A bin's beginning and its end may lie in different steps, with whole steps between.
    """
    step = bin_width * (last - first + 1) / _NUM_LEVELS
    begins = (np.arange(_NUM_BINS) - first) * bin_width
    ends = begins + bin_width
    of_begin = np.clip(np.floor(begins / step), 0, _NUM_LEVELS - 1)
    of_end = np.clip(np.floor(ends / step), 0, _NUM_LEVELS - 1)
    half = step / 2
    errors = _integrate(begins - (of_begin + 0.5) * step, half)
    errors += (of_end - of_begin - 1) * _integrate(-half, half)
    errors += _integrate(-half, ends - (of_end + 0.5) * step)
    return float((errors * counts).sum() / bin_width)


def _integrate(begin: np.ndarray | float, end: np.ndarray | float) -> np.ndarray:
    """The integral of x^2."""
    return np.asarray((end * end * end - begin * begin * begin) / 3)
