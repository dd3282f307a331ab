"""AWQ: the layer computes the same, and rounding it to groups changes its outputs less."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.quantizer.awq import SCALED_INPUTS, scale_layer_awq
from mindformers_glm.quantizer.layer_parts import LayerParts
from mindformers_glm.quantizer.weight_grid import WeightGrid
from mindformers_glm.weights.tensor_names import PROJ, QKV
from tests.unit.quantizer.dialect_layers import DialectCheckpoint

GRID = WeightGrid(4, 32)


def test_scaled_layers_compute_what_they_did(
    dialect_checkpoint: DialectCheckpoint, tmp_path: Path
) -> None:
    changed = {}
    for number, inputs in enumerate(dialect_checkpoint.inputs):
        layer = dialect_checkpoint.layer(number)
        wide = {name: array.astype(np.float64) for name, array in layer.items()}
        result = scale_layer_awq(wide, inputs, dialect_checkpoint.config, GRID)
        assert QKV in result.scales
        prefix = f"{dialect_checkpoint.prefix}{number}."
        changed |= {prefix + name: array for name, array in result.tensors.items()}
    assert dialect_checkpoint.error_with(changed, tmp_path / "scaled") < 1e-10


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_no_linears_output_changes_more_than_without_scales(
    dialect_checkpoint: DialectCheckpoint, is_symmetric: bool
) -> None:
    grid = WeightGrid(4, 32, is_symmetric)
    layer, inputs = dialect_checkpoint.layer(0), dialect_checkpoint.inputs[0]
    config = dialect_checkpoint.config
    result = scale_layer_awq(layer, inputs, config, grid)
    after = LayerParts(config, layer | dict(result.tensors))
    before = LayerParts(config, layer | dict(result.tensors))
    for parameter, scales in result.scales.items():
        assert parameter in SCALED_INPUTS
        samples = inputs[parameter].samples / scales
        for name in before.linears(parameter):
            # The matrix as it would be without the scales of its columns.
            before.changed[name] = before[name] / scales
        errors = [
            sum(
                np.sum(((grid.round_trip(weight) - weight) @ x.T) ** 2) / len(weight)
                for weight in parts.weights(parameter)
            )
            for parts, x in ((after, samples), (before, inputs[parameter].samples))
        ]
        assert errors[0] < errors[1]


def test_heads_that_share_values_are_scaled_alike(dialect_checkpoint: DialectCheckpoint) -> None:
    config, inputs = dialect_checkpoint.config, dialect_checkpoint.inputs[0]
    result = scale_layer_awq(dialect_checkpoint.layer(0), inputs, config, WeightGrid(4))
    if PROJ in result.scales:
        heads = result.scales[PROJ].reshape(config.num_key_value_heads, -1, config.head_dim)
        assert np.array_equal(heads[:, 0], heads[:, 1])


def test_a_layer_that_no_scales_help_stays_as_it_is(
    dialect_checkpoint: DialectCheckpoint,
) -> None:
    layer = dialect_checkpoint.layer(0)
    parts = LayerParts(dialect_checkpoint.config, layer)
    for parameter in SCALED_INPUTS:
        for name in parts.linears(parameter):
            layer[name] = np.zeros_like(layer[name])
    result = scale_layer_awq(layer, dialect_checkpoint.inputs[0], dialect_checkpoint.config, GRID)
    assert not result.tensors
    assert not result.scales
