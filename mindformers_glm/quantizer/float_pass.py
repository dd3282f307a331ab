"""What the float network shows of a layer before it is quantized: ranges to smooth, KV scales."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindformers_glm.quantizer.awq import SCALED_INPUTS, scale_layer_awq
from mindformers_glm.quantizer.float_layers import FloatNetwork, Tensors
from mindformers_glm.quantizer.kv_scales import KvObserver
from mindformers_glm.quantizer.recipe import AWQ, Recipe
from mindformers_glm.quantizer.result import KvScales
from mindformers_glm.quantizer.smoothing.input_statistics import (
    InputStatistics,
    StatisticsCollector,
)
from mindformers_glm.quantizer.smoothing.smooth import smooth_layer, smoothed_inputs
from mindformers_glm.quantizer.weight_grid import WeightGrid

_KEPT_TOKENS = 512  # that searches measure their error on


@dataclass(frozen=True)
class FloatPass:
    """A layer of the float network, run.

    Attributes:
        hidden: float32 [rows, hidden_size], its output.
        changed: tensors that anti-outlier or AWQ has changed or made, by names within the layer.
        kv_scales: as msModelSlim takes them; None: they are not asked for here.
    """

    hidden: np.ndarray
    changed: Mapping[str, np.ndarray]
    kv_scales: KvScales | None


def needs_float_pass(recipe: Recipe) -> bool:
    """Whether anything is taken from the float network and not from the quantized one."""
    has_tools_scales = recipe.has_kv_scales and recipe.is_msmodelslim
    return bool(recipe.anti_method or recipe.rounding == AWQ or has_tools_scales)


def run_float_pass(
    network: FloatNetwork, recipe: Recipe, tensors: Tensors, hidden: np.ndarray
) -> FloatPass:
    """Run a layer as it is, on what the float layers before it have made."""
    # The tool's searches look at the first sample alone.
    num_kept = 1 if recipe.is_msmodelslim else _KEPT_TOKENS
    looked_at = SCALED_INPUTS if recipe.rounding == AWQ else smoothed_inputs(recipe.anti_method)
    collectors = {name: StatisticsCollector(num_kept) for name in looked_at}

    def see(parameter: str, x: np.ndarray) -> None:
        if parameter in collectors:
            for rows in network.sample_rows:
                collectors[parameter].add(x[rows])

    kv_observer = KvObserver(network, is_rotated=False)
    multiply = network.multiply_floats(tensors, see)
    if recipe.has_kv_scales and recipe.is_msmodelslim:
        multiply = kv_observer.watch(multiply)
    hidden = network.run(tensors, hidden, multiply)
    inputs = {name: collector.finish() for name, collector in collectors.items()}
    changed = _change(recipe, network, tensors, inputs) if inputs else {}
    return FloatPass(hidden, changed, kv_observer.scales)


def _change(
    recipe: Recipe,
    network: FloatNetwork,
    tensors: Tensors,
    inputs: Mapping[str, InputStatistics],
) -> Mapping[str, np.ndarray]:
    grid = WeightGrid(recipe.weight_bits, recipe.group_size, recipe.is_symmetric)
    if recipe.rounding == AWQ:
        return scale_layer_awq(tensors, inputs, network.config, grid).tensors
    return smooth_layer(recipe.anti_method, tensors, inputs, network.config, grid).tensors
