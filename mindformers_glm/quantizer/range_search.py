"""The range of static activations that changes a linear's output least, by measurement.

A range that cuts off a little leaves finer steps to all else; how much is worth it depends on the
channels that are cut, of which some weigh far more in the output than others. The error of the
output for errors e of the input is e W^T W e^T, of which the diagonal is counted: errors of
rounding go either way and cancel in the rest. So a histogram of all values, each counted as much
as its channel weighs, has all that is needed, rare values included.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mindformers_glm.quantizer.observers import round_static, static_range
from mindformers_glm.quantizer.result import StaticRange

_NUM_BINS = 16384  # 64 of a step of the whole range
_CHUNK_ROWS = 1024
_SHARES = np.linspace(1.0, 0.3, 15, dtype=np.float32)  # of the whole range
_STEPS = np.array([0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.2], np.float32)  # of one end
_TURNS = 2  # of both ends

_Ends = tuple[np.float32, np.float32]


def search_range(x: np.ndarray, weights: Sequence[np.ndarray]) -> StaticRange:
    """First both ends at once, then one after the other.

    Args:
        x: float32 [tokens, channels].
        weights: float32 [rows, channels] of each linear that takes it.
    """
    low, high = x.min(), x.max()
    if low == high:
        return static_range(low, high)
    energies = np.sum([np.square(weight).sum(axis=0, dtype=np.float64) for weight in weights], 0)
    counts = _count(x, low, high, energies)
    width = (float(high) - float(low)) / _NUM_BINS
    middles = (float(low) + width * (np.arange(_NUM_BINS) + 0.5)).astype(np.float32)

    def measure(ends: _Ends) -> float:
        found = static_range(*ends)
        errors = round_static(middles, found.scale, found.offset) * found.scale - middles
        return float(np.square(errors, dtype=np.float64) @ counts)

    best, least = (low, high), np.inf
    for share in _SHARES:
        best, least = _better(measure, (low * share, high * share), best, least)
    for _ in range(_TURNS):
        low = best[0]
        for step in _STEPS:
            best, least = _better(measure, (low * step, best[1]), best, least)
        high = best[1]
        for step in _STEPS:
            best, least = _better(measure, (best[0], high * step), best, least)
    return static_range(*best)


def _count(x: np.ndarray, low: np.float32, high: np.float32, energies: np.ndarray) -> np.ndarray:
    """float64 [bins], of all values from low to high."""
    counts = np.zeros(_NUM_BINS)
    to_bins = _NUM_BINS / (float(high) - float(low))
    for begin in range(0, len(x), _CHUNK_ROWS):
        rows = x[begin : begin + _CHUNK_ROWS]
        bins = ((rows - low) * np.float32(to_bins)).astype(np.int64)
        np.clip(bins, 0, _NUM_BINS - 1, out=bins)
        shares = np.broadcast_to(energies, rows.shape).ravel()
        counts += np.bincount(bins.ravel(), shares, _NUM_BINS)
    return counts


def _better(
    measure: Callable[[_Ends], float], tried: _Ends, best: _Ends, least: float
) -> tuple[_Ends, float]:
    error = measure(tried)
    return (tried, error) if error < least else (best, least)
