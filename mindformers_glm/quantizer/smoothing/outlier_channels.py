"""m5: only channels that lie far out are scaled, and which do is found from their ranges alone.

Source: msModelSlim 26.1.0, pytorch/llm_ptq/anti_outlier/cbq.py (its CBQ: coarse and fine detection
of outliers).
"""

import numpy as np

_FENCE, _POWER = np.float32(1.5), 0.7


def scale_outlier_channels(minimum: np.ndarray, maximum: np.ndarray) -> np.ndarray:
    """Scales of a linear's input: above one where a channel's range is an outlier, else one.

    Args:
        minimum, maximum: float32 [channels] of the input.
    """
    upper, _ = _scale_tail(maximum)
    lower, smallest = _scale_tail(-minimum)
    # Where no channel goes below zero, what is small says nothing of ranges.
    scales = np.maximum(upper, lower) if smallest != 0 else upper
    return np.where(scales > 0, scales, np.float32(1))


def _scale_tail(ends: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Scales by one end of the ranges, counted outwards, and the outermost end that is usual."""
    lower, upper = np.quantile(ends, np.array([0.2, 0.8], np.float32)).astype(np.float32)
    limit = upper + _FENCE * (upper - lower)
    far = np.sort(ends[ends > limit])[::-1]
    if len(far) > 1:
        limit = _split(far)
    is_outlier = ends > limit
    usual = ends[~is_outlier].max()
    scales = np.ones_like(ends)
    with np.errstate(divide="ignore", invalid="ignore"):
        scales[is_outlier] = (ends[is_outlier] / usual) ** np.float32(_POWER)
    return scales, usual


def _split(far: np.ndarray) -> np.float32:
    """The largest of the values that are no outliers after all; of float32, descending.

    The two classes are wide apart, and the inner one is narrow.
    """
    best, limit = -np.inf, far[0]
    for count in range(1, len(far)):
        inner = far[count:]
        spread = inner.var(ddof=1, dtype=np.float64) if len(inner) > 1 else 0.0
        merit = float(far[count - 1] - far[count]) - spread
        if merit > best:
            best, limit = merit, inner[0]
    return limit
