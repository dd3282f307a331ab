"""How wide the activations of a linear are: the scale and offset that all of them share.

Source: msModelSlim 26.1.0, act_method 1 to 3 of its calibrator, by its outputs; of method 2 see
histogram.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindformers_glm.quantizer.histogram import Histogram
from mindformers_glm.quantizer.recipe import AUTOMATIC, HISTOGRAM, MIN_MAX
from mindformers_glm.quantizer.result import StaticRange

_SMALLEST_SCALE = np.float32(2.0**-23)
_NUM_LEVELS = 256
# Of AUTOMATIC: an input whose largest magnitude is at most so many standard deviations has no
# outliers that a histogram would cut off.
_WIDEST_FOR_HISTOGRAM = 50
NUM_LOOKED_AT = 5  # samples by which that, and how wide an input is, is decided


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


def observe(
    x: np.ndarray, sample_rows: Sequence[slice], act_method: int, is_tools: bool = False
) -> ObservedRange:
    """Find the range of an input by a method of the recipe.

    Args:
        x: float32 [rows of all samples, channels].
        is_tools: a histogram is what msModelSlim makes of one sample after the other; else of all.
    """
    if choose_method(x, sample_rows, act_method) == HISTOGRAM:
        return _observe_grown(x, sample_rows) if is_tools else _observe_histogram(x, sample_rows)
    low = _running_means([x[rows].min() for rows in sample_rows])
    high = _running_means([x[rows].max() for rows in sample_rows])
    ranges = tuple(static_range(*pair) for pair in zip(low, high, strict=True))
    return ObservedRange(ranges[-1], ranges)


def choose_method(x: np.ndarray, sample_rows: Sequence[slice], act_method: int) -> int:
    """MIN_MAX or HISTOGRAM, also where it goes by the input (AUTOMATIC)."""
    if act_method != AUTOMATIC:
        return act_method
    return HISTOGRAM if width(x, sample_rows) <= _WIDEST_FOR_HISTOGRAM else MIN_MAX


def _observe_histogram(x: np.ndarray, sample_rows: Sequence[slice]) -> ObservedRange:
    found = static_range(*Histogram.of(x).search_range())
    return ObservedRange(found, (found,) * len(sample_rows))


def _observe_grown(x: np.ndarray, sample_rows: Sequence[slice]) -> ObservedRange:
    histogram, ranges = Histogram.of(x[sample_rows[0]], is_tools=True), []
    for number, rows in enumerate(sample_rows):
        if number:
            histogram = histogram.with_sample(x[rows])
        ranges.append(static_range(*histogram.search_range()))
    return ObservedRange(ranges[-1], tuple(ranges))


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
