"""Scales that are searched for: the error of the output is measured on samples of the input.

Source: msModelSlim 26.1.0 (`os_ln_fcs`, `weight_aware` of the closed anti_utils, by what they give
for known inputs); AWQ: Lin et al. 2023, arXiv:2306.00978; Outlier Suppression+: Wei et al. 2023,
arXiv:2304.09145.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mindformers_glm.quantizer.products import multiply
from mindformers_glm.quantizer.smoothing.input_statistics import InputStatistics
from mindformers_glm.quantizer.weight_grid import WeightGrid

_NUM_POWERS = 20  # of m3 and AWQ: 0, 0.05, ... 0.95
_NUM_THRESHOLDS = 100  # of m2
_SMALLEST_MAGNITUDE = np.float32(1e-4)
_SMALLEST_RANGE = np.float32(2.0**-23)
SMALLEST_SCALE = np.float32(1e-5)


@dataclass(frozen=True)
class FoundScales:
    """What a search has found: scales, and the error that they leave on the samples.

    error: the mean square of the change of the output, added over the linears; `unscaled_error` is
        that without scales.
    """

    scales: np.ndarray
    error: float
    unscaled_error: float


def search_magnitude_power(
    magnitudes: np.ndarray, samples: np.ndarray, weights: Sequence[np.ndarray], grid: WeightGrid
) -> FoundScales:
    """The power of the input's magnitudes that protects the weights best when they are rounded.

    Args:
        magnitudes: float32 [channels], mean |input|.
        samples: float32 [tokens, channels].
        weights: float32 [rows, channels] of the linears that share the input.
        grid: what they are rounded to; activations stay as they are.
    """

    def round_scaled(scales: np.ndarray) -> list[np.ndarray]:
        return [grid.round_trip(weight * scales) / scales for weight in weights]

    candidates = [magnitude_scales(magnitudes, n / _NUM_POWERS) for n in range(_NUM_POWERS)]
    outputs = [multiply(samples, weight) for weight in weights]

    def measure(scales: np.ndarray) -> float:
        pairs = zip(outputs, round_scaled(scales), strict=True)
        return sum(_mean_square(multiply(samples, rounded) - output) for output, rounded in pairs)

    return _take_best(candidates, measure)


def magnitude_scales(magnitudes: np.ndarray, power: float) -> np.ndarray:
    """float32 [channels]: a power of magnitudes, of which the extremes' product is one."""
    scales = np.maximum(magnitudes ** np.float32(power), _SMALLEST_MAGNITUDE)
    return scales / np.sqrt(scales.max() * scales.min())


def search_threshold(inputs: InputStatistics, weights: Sequence[np.ndarray]) -> np.ndarray:
    """m2: the channels that lie above one threshold are scaled, which the search finds.

    The samples are rounded to 8 bits with one range, and measured with weights as they are, of the
    first linear alone where several share the input: as the tool does.
    """
    column_max = np.max([np.abs(weight).max(axis=0) for weight in weights], axis=0)
    column_root = np.sqrt(np.maximum(column_max, SMALLEST_SCALE))
    ends, deviation = inputs.shifted_max, inputs.shifted_std
    largest = ends.max()
    if 3 * deviation >= largest:  # nothing lies far out
        return np.maximum(np.sqrt(inputs.abs_max) / column_root, SMALLEST_SCALE)
    step = (largest - deviation) / np.float32(_NUM_THRESHOLDS - 1)

    def scale_above(threshold: np.float32) -> np.ndarray:
        ratio = np.maximum(ends / threshold, np.float32(1))
        scales = np.maximum(np.sqrt(ratio * threshold) / column_root, SMALLEST_SCALE)
        return np.where(ratio <= 1, np.float32(1), scales)

    candidates = [scale_above(deviation + np.float32(n) * step) for n in range(_NUM_THRESHOLDS)]
    weight, shifted = weights[0], inputs.samples - inputs.middle

    def measure(scales: np.ndarray) -> float:
        scaled = shifted / scales
        change = _round_activations(scaled) - scaled
        return _mean_square(multiply(change, weight * scales))

    return _take_best(candidates, measure).scales


def _take_best(
    candidates: Iterable[np.ndarray], measure: Callable[[np.ndarray], float]
) -> FoundScales:
    """The first of those with the least error; the first of all leaves things as they are."""
    best, least, first = None, np.inf, None
    for scales in candidates:
        error = measure(scales)
        first = error if first is None else first
        if best is None or error < least:
            best, least = scales, error
    assert best is not None
    assert first is not None
    return FoundScales(best, least, first)


def _round_activations(values: np.ndarray) -> np.ndarray:
    """To 8 bits and back, with a zero point, one range for all."""
    low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    scale = max((high - low) / np.float32(255), _SMALLEST_RANGE)
    offset = np.rint(-low / scale) - np.float32(128)
    codes = np.clip(np.rint(values / scale + offset), -128, 127)
    return (codes - offset) * scale


def _mean_square(values: np.ndarray) -> float:
    return float(np.mean(np.square(values), dtype=np.float64))
