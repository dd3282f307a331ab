"""Anti-outlier of one decoder layer: the scales of a method, and the layer they are folded into.

Source: msModelSlim 26.1.0, pytorch/llm_ptq/anti_outlier and processor/anti_outlier, for what each
method scales; SmoothQuant: Xiao et al. 2022, arXiv:2211.10438. Where the tool is wrong for this
family (m4 takes fused gates for up projections, fused qkv for v; glm4 fails) it is not followed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantizer.layer_parts import LayerParts
from mindformers_glm.quantizer.smoothing.input_statistics import InputStatistics
from mindformers_glm.quantizer.smoothing.outlier_channels import scale_outlier_channels
from mindformers_glm.quantizer.smoothing.scale_search import (
    SMALLEST_SCALE,
    search_magnitude_power,
    search_threshold,
)
from mindformers_glm.quantizer.weight_grid import WeightGrid
from mindformers_glm.weights.tensor_names import FC1, FC2, PROJ, QKV

_BEHIND_NORMS = (QKV, FC1)
# Linears whose input each method scales.
_SCALED = {
    "m1": _BEHIND_NORMS,
    "m2": _BEHIND_NORMS,
    "m3": _BEHIND_NORMS,
    "m4": (QKV, FC1, PROJ, FC2),
    "m5": _BEHIND_NORMS,
}
METHODS = tuple(_SCALED)


@dataclass(frozen=True)
class SmoothedLayer:
    """What has become of a layer.

    Attributes:
        tensors: float32, changed ones and new ones (biases of norms), by names within the layer.
        scales: QKV, FC1, PROJ, FC2 of weights/tensor_names.py -> float32 [channels], what the input
            of that linear has been divided by; `InputStatistics.divided_by` follows.
    """

    tensors: Mapping[str, np.ndarray]
    scales: Mapping[str, np.ndarray]


def smoothed_inputs(method: str) -> tuple[str, ...]:
    """The linears of which `smooth_layer` wants statistics; "" is no method."""
    return _SCALED[method] if method else ()


def smooth_layer(
    method: str,
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, InputStatistics],
    config: GlmConfig,
    grid: WeightGrid,
) -> SmoothedLayer:
    """Fold a method's scales into a layer, which computes the same as before.

    Args:
        method: m1 to m5.
        tensors: all of a layer's, float32, by their names within the layer
            ("input_layernorm.weight"); none is written to.
        inputs: of the linears in `smoothed_inputs(method)`, by the same keys.
        grid: what weights will be rounded to; m3 alone looks at it.
    """
    parts = LayerParts(config, tensors)
    scales = {}
    for parameter in smoothed_inputs(method):
        found = _find_scales(method, parts, parameter, inputs[parameter], grid)
        scales[parameter] = parts.divide_input(parameter, found)
    parts.add_norm_biases()
    return SmoothedLayer(parts.changed, scales)


def _find_scales(
    method: str, parts: LayerParts, parameter: str, inputs: InputStatistics, grid: WeightGrid
) -> np.ndarray:
    if method == "m2":
        return search_threshold(inputs, parts.weights(parameter))
    if method == "m3":
        samples = inputs.samples
        magnitudes = np.abs(samples).mean(axis=0)
        return search_magnitude_power(magnitudes, samples, parts.weights(parameter), grid).scales
    if method == "m5":
        return scale_outlier_channels(inputs.minimum, inputs.maximum)
    return _balance(inputs.abs_max, parts.column_max(parameter), **_POWERS[method])


# Powers of the input's range and of the weights', of the methods that look at nothing else.
_POWERS = {
    "m1": {"input_power": 0.5, "weight_power": 0.5},
    "m4": {"input_power": 0.9, "weight_power": 0.1},
}


def _balance(
    input_max: np.ndarray, weight_max: np.ndarray, input_power: float, weight_power: float
) -> np.ndarray:
    """float32 [channels]: large where the input is large beside the weights."""
    upper = input_max ** np.float32(input_power)
    lower = np.maximum(weight_max, SMALLEST_SCALE) ** np.float32(weight_power)
    return np.maximum(upper / lower, SMALLEST_SCALE)
