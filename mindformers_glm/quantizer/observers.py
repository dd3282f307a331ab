"""How wide the activations of a linear are: the scale and offset that all of them share.

Source: msModelSlim 26.1.0, act_method 1 to 3 of its calibrator, by its outputs; PyTorch 2.13
`HistogramObserver` for the search of method 2, which is caffe2's NormMinimization.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindformers_glm.quantizer.recipe import AUTOMATIC, HISTOGRAM, MIN_MAX
from mindformers_glm.quantizer.result import StaticRange

_SMALLEST_SCALE = np.float32(2.0**-23)
_NUM_BINS, _NUM_LEVELS = 2048, 256
_QUANTILE_STEP = 1e-5  # by which the search lets values go at either end
# Of AUTOMATIC: an input whose largest magnitude is at most so many standard deviations has no
# outliers that a histogram would cut off.
_WIDEST_FOR_HISTOGRAM = 50
NUM_LOOKED_AT = 5  # samples by which that, and how wide an input is, is decided
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class ObservedRange:
    """What of the activations of a linear is known.

    Attributes:
        whole: from all samples.
        by_sample: what was known when each sample was run, itself included; msModelSlim calibrates
            sample by sample through the whole network.
    """

    whole: StaticRange
    by_sample: tuple[StaticRange, ...]


def observe(x: np.ndarray, sample_rows: Sequence[slice], act_method: int) -> ObservedRange:
    """Find the range of an input by a method of the recipe.

    Args:
        x: float32 [rows of all samples, channels].
    """
    if act_method == AUTOMATIC:
        is_narrow = width(x, sample_rows) <= _WIDEST_FOR_HISTOGRAM
        act_method = HISTOGRAM if is_narrow else MIN_MAX
    if act_method == HISTOGRAM:
        found = static_range(*search_range(x))
        return ObservedRange(found, (found,) * len(sample_rows))
    low = _running_means([x[rows].min() for rows in sample_rows])
    high = _running_means([x[rows].max() for rows in sample_rows])
    ranges = tuple(static_range(*pair) for pair in zip(low, high, strict=True))
    return ObservedRange(ranges[-1], ranges)


def width(x: np.ndarray, sample_rows: Sequence[slice]) -> float:
    """The largest magnitude in standard deviations, of the first few samples."""
    seen = x[: sample_rows[:NUM_LOOKED_AT][-1].stop]
    deviation = float(seen.std(dtype=np.float64))
    largest = float(max(seen.max(), -seen.min()))
    return largest / deviation if deviation else 0.0


def static_range(minimum: np.float32, maximum: np.float32) -> StaticRange:
    """The finest 256 steps that hold both and zero; all arithmetic is float32."""
    low, high = np.minimum(minimum, np.float32(0)), np.maximum(maximum, np.float32(0))
    scale = np.maximum((high - low) / np.float32(_NUM_LEVELS - 1), _SMALLEST_SCALE)
    return StaticRange(scale, np.rint(-low / scale) - np.float32(_NUM_LEVELS // 2))


def round_static(
    x: np.ndarray, scale: np.ndarray | np.float32, offset: np.ndarray | np.float32
) -> np.ndarray:
    """Activations as integers less the offset, float32: clip(rint(x / scale + offset)) - offset.

    Args:
        scale, offset: float32, of all of x, or [rows, 1].
    """
    values = x / scale
    values += offset
    np.rint(values, out=values)
    np.clip(values, -(_NUM_LEVELS // 2), _NUM_LEVELS // 2 - 1, out=values)
    values -= offset
    return values


def round_tokens(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers of -127 to 127 and the scale of each row, as a card's DynamicQuant has them.

    Returns:
        float32 of x's shape, and [rows, 1].
    """
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    np.maximum(scale, np.finfo(np.float32).tiny, out=scale)
    return np.rint(x / scale), scale


def _running_means(values: Sequence[np.float32]) -> list[np.float32]:
    """The mean of the first, of the first two, ... as float32 that are updated one by one."""
    means = [np.float32(values[0])]
    for number, value in enumerate(values[1:], 1):
        total = means[-1] * np.float32(number) + np.float32(value)
        means.append(np.float32(total / np.float32(number + 1)))
    return means


def search_range(x: np.ndarray) -> tuple[np.float32, np.float32]:
    """The range with the least squared error, by a histogram of all values.

    From both ends values are let go, `_QUANTILE_STEP` of them at a time, where more bins are won;
    it ends when the error grows.

    Returns:
        Minimum and maximum, borders of bins.
    """
    low, high = x.min(), x.max()
    if low == high:
        return low, high
    counts = _count_bins(x, low, high)
    bin_width = (high - low) / np.float32(_NUM_BINS)
    first, last = _search_bins(counts, float(high - low) / _NUM_BINS)
    return low + bin_width * np.float32(first), low + bin_width * np.float32(last + 1)


def _count_bins(x: np.ndarray, low: np.float32, high: np.float32) -> np.ndarray:
    """float64 [bins]; the largest value is in the last bin."""
    counts = np.zeros(_NUM_BINS, np.int64)
    for begin in range(0, len(x), _CHUNK_ROWS):
        places = (x[begin : begin + _CHUNK_ROWS] - low) / (high - low) * np.float32(_NUM_BINS)
        bins = np.minimum(places.astype(np.int64), _NUM_BINS - 1)
        counts += np.bincount(bins.ravel(), minlength=_NUM_BINS)
    return counts.astype(np.float64)


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
