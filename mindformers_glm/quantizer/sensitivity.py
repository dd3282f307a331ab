"""Mixed precision: how much each linear of a layer costs at each width, measured, and the choice.

    error of a linear at a width = |what the layer gives with it alone rounded - what it gives|^2
                                   / |what it gives|^2, on a few calibration samples

in the float network, behind anti-outlier if there is any. So the errors of an attention and of an
MLP are of one kind: what they do to the residual stream. Weights are rounded to nearest here,
whatever the recipe rounds by: which linear is the most sensitive does not hang on that. Linears
that take one input (q, k and v) have one width, as programs that join them need it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mindformers_glm.quantizer.float_layers import FloatNetwork, Tensors
from mindformers_glm.quantizer.float_pass import needs_float_pass, run_float_pass
from mindformers_glm.quantizer.layer_rounding import LayerRounding
from mindformers_glm.quantizer.recipe import NEAREST, Recipe
from mindformers_glm.quantizer.widths import choose_widths

FLOAT_BITS = 16  # of what stays float, as released checkpoints have it
_WIDTHS = (4, 8)
# The modules of a layer that have one width, by whole names.
Joint = tuple[str, ...]


def mix_widths(network: FloatNetwork, recipe: Recipe) -> dict[str, int]:
    """Choose the width of each linear module of the layers: 4, 8 or 16, which is float.

    Args:
        network: with the samples to measure on.
        recipe: with `target_bits`; `disable_names` stay float and are counted as such.
    Raises:
        ConfigError: not even the narrowest widths fit.
    """
    assert recipe.target_bits is not None
    errors: dict[Joint, dict[int, float]] = {}
    sizes: dict[Joint, dict[int, int]] = {}
    num_weights = num_float = 0
    widths = [bits for bits in _WIDTHS if recipe.weight_bits <= bits <= recipe.max_bits]
    hidden = network.embed()
    for number in range(network.config.num_hidden_layers):
        prefix = network.names.layer_prefix(number)
        tensors = network.read(number)
        for modules in network.names.modules.values():
            counts = {prefix + name: tensors[f"{name}.weight"].size for name in modules}
            mixed = tuple(name for name in counts if name not in recipe.disable_names)
            num_weights += sum(counts.values())
            num_float += sum(counts[name] for name in counts if name not in mixed)
            if mixed:
                weights = sum(counts[name] for name in mixed)
                sizes[mixed] = {bits: weights * bits // 8 for bits in (*widths, FLOAT_BITS)}
        joints = [joint for joint in sizes if joint[0].startswith(prefix)]
        hidden, found = _measure_layer(network, recipe, number, tensors, hidden, joints, widths)
        errors |= found
    budget = int(num_weights * recipe.target_bits - num_float * FLOAT_BITS) // 8
    names = {",".join(joint): joint for joint in sizes}
    chosen = choose_widths(
        {name: errors[joint] for name, joint in names.items()},
        {name: sizes[joint] for name, joint in names.items()},
        budget,
    )
    return {name: chosen[joined] for joined, joint in names.items() for name in joint}


def _measure_layer(
    network: FloatNetwork,
    recipe: Recipe,
    number: int,
    tensors: Tensors,
    hidden: np.ndarray,
    joints: Sequence[Joint],
    widths: Sequence[int],
) -> tuple[np.ndarray, Mapping[Joint, dict[int, float]]]:
    """What the float layer gives, and the errors of its linears."""
    if needs_float_pass(recipe):
        seen = run_float_pass(network, recipe, tensors, hidden)
        expected, tensors = seen.hidden, dict(tensors) | dict(seen.changed)
    else:
        expected = network.run(tensors, hidden, network.multiply_floats(tensors, lambda *_: None))
    energy = float(np.vdot(expected, expected)) or 1.0
    prefix = network.names.layer_prefix(number)
    everything = {prefix + name for names in network.names.modules.values() for name in names}
    errors: dict[Joint, dict[int, float]] = {joint: {FLOAT_BITS: 0.0} for joint in joints}
    for joint, found in errors.items():
        for bits in widths:
            alone = replace(
                recipe,
                rounding=NEAREST,
                disable_names=frozenset(everything.difference(joint)),
                bits_of={name: bits for name in joint if bits != recipe.weight_bits},
            )
            rounding = LayerRounding(network, alone, number, tensors)
            change = network.run(tensors, hidden, rounding.multiply) - expected
            found[bits] = float(np.vdot(change, change)) / energy
    return expected, errors
