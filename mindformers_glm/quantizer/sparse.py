"""W8A8S: most weights in 4 bits and a few outliers in 8, all of a row on one scale.

"Sparse" means that the integers have little entropy, so that they can be compressed: the body
reaches from -7 to 7, and one integer in eight or so is zero.

Source: msModelSlim 26.1.0 by its outputs. Its choice of outliers is in a closed library: without
sigma (lowbit) there are none, and our integers are its own; the other two follow its figures.
"""

import numpy as np

from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.recipe import Recipe

_BODY, _MOST = np.float32(7), np.float32(127)
_SMALLEST_SCALE = np.float32(2.0**-23)


def round_sparse(weight: np.ndarray, recipe: Recipe) -> QuantizedRows:
    """float32 [out, in] to a body of -7 to 7 and outliers that reach up to 127."""
    magnitudes = np.abs(weight)
    largest = magnitudes.max(axis=1, keepdims=True)
    body = np.where(magnitudes <= _threshold(weight, magnitudes, recipe), magnitudes, 0)
    scales = body.max(axis=1, keepdims=True) / _BODY
    # The largest outlier must still fit.
    scales = np.maximum(np.maximum(scales, largest / _MOST), _SMALLEST_SCALE)
    codes = np.clip(np.rint(weight / scales), -_MOST, _MOST).astype(np.int8)
    return QuantizedRows(codes, scales, None, np.zeros(weight.shape[1], np.int64))


def _threshold(weight: np.ndarray, magnitudes: np.ndarray, recipe: Recipe) -> np.ndarray:
    """float32, beyond which weights are outliers: [out, 1], or of all of them."""
    if recipe.is_co_sparse:
        kept = int(np.ceil(magnitudes.size * (1 - recipe.fraction))) - 1
        return np.partition(magnitudes.ravel(), max(kept, 0))[max(kept, 0)]
    if recipe.use_sigma:
        return np.float32(recipe.sigma_factor) * weight.std(axis=1, keepdims=True)
    return np.array(np.inf, np.float32)
