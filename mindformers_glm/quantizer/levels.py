"""disable_level: the linears whose inputs have the largest outliers stay float.

Source: msModelSlim 26.1.0 `disable_level` L0 to Ln by its outputs: linears in the order of the
largest magnitude of their input in standard deviations, of the first five samples.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mindformers_glm.quantizer.float_layers import FloatNetwork
from mindformers_glm.quantizer.observers import width


def measure_widths(network: FloatNetwork, is_absolute: bool = False) -> dict[str, float]:
    """How wide the input of each linear module of the float network is, by its whole name.

    Args:
        network: with the samples to look at, the first NUM_LOOKED_AT as the tool does.
        is_absolute: by the largest magnitude itself, as the tool has it for sparse weights.
    """
    widths: dict[str, float] = {}
    hidden = network.embed()
    for number in range(network.config.num_hidden_layers):
        prefix = network.names.layer_prefix(number)

        def see(parameter: str, x: np.ndarray, prefix: str = prefix) -> None:
            largest = max(float(x.max()), -float(x.min()))
            found = largest if is_absolute else width(x, network.sample_rows)
            for module in network.names.modules[parameter]:
                widths[prefix + module] = found

        tensors = network.read(number)
        hidden = network.run(tensors, hidden, network.multiply_floats(tensors, see))
    return widths


def choose_widest(
    widths: Mapping[str, float], level: int, disabled: Sequence[str] | frozenset[str]
) -> tuple[str, ...]:
    """The first `level` modules that are not disabled anyway; of equal ones the first."""
    left = [name for name in widths if name not in disabled]
    return tuple(sorted(left, key=lambda name: -widths[name])[:level])
