"""AWQ: scales that protect the weights of large inputs, searched for and folded into the layer.

Each linear's input is divided by a power of its mean magnitude, its columns are multiplied by it
before they are rounded, and what makes the input is divided (layer_parts.py): norms, rows of v,
rows of up. The power is the one that changes the outputs least on samples; where no power is better
than none, nothing is scaled.
Source: Lin et al. 2023, arXiv:2306.00978; AutoAWQ 0.2 for which linears are searched together.
"""

from collections.abc import Mapping

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantizer.layer_parts import LayerParts
from mindformers_glm.quantizer.smoothing.input_statistics import InputStatistics
from mindformers_glm.quantizer.smoothing.scale_search import search_magnitude_power
from mindformers_glm.quantizer.smoothing.smooth import SmoothedLayer
from mindformers_glm.quantizer.weight_grid import WeightGrid
from mindformers_glm.weights.tensor_names import FC1, FC2, PROJ, QKV

SCALED_INPUTS = (FC2, PROJ, FC1, QKV)


def scale_layer_awq(
    tensors: Mapping[str, np.ndarray],
    inputs: Mapping[str, InputStatistics],
    config: GlmConfig,
    grid: WeightGrid,
) -> SmoothedLayer:
    """Fold AWQ's scales into a decoder layer, which computes the same as before.

    Heads that share a head of v share its scales, so their inputs' magnitudes are averaged.

    Args:
        tensors: all of a layer's, float32, by their names within the layer; none is written to.
        inputs: of SCALED_INPUTS.
        grid: what weights will be rounded to.
    """
    parts = LayerParts(config, tensors)
    scales = {}
    # down before gate_up, o before qkv: rows of up and v are final when their columns are searched.
    for parameter in SCALED_INPUTS:
        seen = inputs[parameter]
        magnitudes = seen.mean_abs
        if parameter == PROJ:
            magnitudes = parts.mean_over_heads(magnitudes)
        found = search_magnitude_power(magnitudes, seen.samples, parts.weights(parameter), grid)
        if found.error < found.unscaled_error:
            scales[parameter] = parts.divide_input(parameter, found.scales)
    return SmoothedLayer(parts.changed, scales)
