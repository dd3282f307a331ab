"""What the float network shows of a layer before it is quantized: ranges to smooth, KV scales."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindformers_glm.quantizer.float_layers import FloatNetwork, Tensors
from mindformers_glm.quantizer.kv_scales import KvObserver
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.quantizer.result import KvScales
from mindformers_glm.quantizer.smoothing.input_statistics import StatisticsCollector
from mindformers_glm.quantizer.smoothing.smooth import smooth_layer, smoothed_inputs
from mindformers_glm.quantizer.weight_grid import WeightGrid

_KEPT_TOKENS = 512  # that searches measure their error on


@dataclass(frozen=True)
class FloatPass:
    """A layer of the float network, run.

    Attributes:
        hidden: float32 [rows, hidden_size], its output.
        changed: tensors that anti-outlier has changed or made, by names within the layer.
        kv_scales: as msModelSlim takes them; None: they are not asked for here.
    """

    hidden: np.ndarray
    changed: Mapping[str, np.ndarray]
    kv_scales: KvScales | None


def needs_float_pass(recipe: Recipe) -> bool:
    """Whether anything is taken from the float network and not from the quantized one."""
    return bool(recipe.anti_method or (recipe.has_kv_scales and recipe.is_msmodelslim))


def run_float_pass(
    network: FloatNetwork, recipe: Recipe, tensors: Tensors, hidden: np.ndarray
) -> FloatPass:
    """Run a layer as it is, on what the float layers before it have made."""
    # The tool's searches look at the first sample alone.
    num_kept = 1 if recipe.is_msmodelslim else _KEPT_TOKENS
    collectors = {
        name: StatisticsCollector(num_kept) for name in smoothed_inputs(recipe.anti_method)
    }

    def see(parameter: str, x: np.ndarray) -> None:
        if parameter in collectors:
            for rows in network.sample_rows:
                collectors[parameter].add(x[rows])

    kv_observer = KvObserver(network, is_rotated=False)
    multiply = network.multiply_floats(tensors, see)
    if recipe.has_kv_scales and recipe.is_msmodelslim:
        multiply = kv_observer.watch(multiply)
    hidden = network.run(tensors, hidden, multiply)
    changed: Mapping[str, np.ndarray] = {}
    if recipe.anti_method:
        inputs = {name: collector.finish() for name, collector in collectors.items()}
        grid = WeightGrid(recipe.weight_bits, recipe.group_size, recipe.is_symmetric)
        method = recipe.anti_method
        changed = smooth_layer(method, tensors, inputs, network.config, grid).tensors
    return FloatPass(hidden, changed, kv_observer.scales)
