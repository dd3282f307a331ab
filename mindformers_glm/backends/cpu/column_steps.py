"""How activations are rounded before a layer whose columns were quantized in parts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindformers_glm.core.errors import CheckpointError


def load_column_steps(steps: np.ndarray, views: Sequence[Any], group: int) -> None:
    """Fill the operand of glm_round_columns.

    Rounded activations are multiplied as the numbers they stand for, so of a part's quant_bias
    only a bias of the layer would be left, and a layer whose columns are cut has none.

    Args:
        steps: float32 [2, columns]: scales, offsets.
        views: QuantizedView of the pieces that are stacked in the layer, all of the same columns.
        group: columns that the layer's method keeps together, whole.
    Raises:
        CheckpointError: the pieces differ, or there is a bias.
    """
    found = []
    for view in views:
        own = np.zeros_like(steps)
        for columns, activation in view.widened(group).read_activations():
            assert activation is not None, "such layers are static in all parts"
            own[0, columns.start : columns.stop] = activation.input_scale
            own[1, columns.start : columns.stop] = activation.input_offset
        found.append(own)
    steps[:] = found[0]
    if any(not np.array_equal(own, steps) for own in found[1:]):
        raise CheckpointError(
            f"{views[0].name} has other scales of activations than the matrices beside it, with "
            "which it is one layer: quantize the model again."
        )
    if any(view.has_bias_in_parts() for view in views):
        raise CheckpointError(
            f"{views[0].name} has a bias in the quant_bias of its parts, and the network's layer "
            "has none: the checkpoint is of another model."
        )
