"""Rotations folded into weights: networks compute the same, and outliers are spread."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.quantizer.rotation import (
    check_residual_rotation,
    make_rotation,
    rotate_ends,
    rotate_residual,
    rotate_values,
)
from mindformers_glm.weights.tensor_names import QKV
from tests.unit.quantizer.dialect_layers import DialectCheckpoint


@pytest.mark.parametrize("size", [1, 2, 12, 64, 96, 40, 6, 7])
def test_rotations_are_orthogonal(size: int) -> None:
    rotation = make_rotation(size, seed=3)
    assert np.allclose(rotation @ rotation.T, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("size", [64, 96, 40])
def test_hadamard_matrices_spread_a_channel_evenly(size: int) -> None:
    assert np.allclose(np.abs(make_rotation(size)), size**-0.5)
    assert not np.array_equal(make_rotation(size, 0), make_rotation(size, 1))


def _wide(checkpoint: DialectCheckpoint, number: int) -> dict[str, np.ndarray]:
    layer = checkpoint.layer(number)
    return {name: array.astype(np.float64) for name, array in layer.items()}


def test_values_of_heads_can_be_rotated_in_every_dialect(
    dialect_checkpoint: DialectCheckpoint, tmp_path: Path
) -> None:
    config = dialect_checkpoint.config
    changed = {}
    for number in range(config.num_hidden_layers):
        layer = _wide(dialect_checkpoint, number)
        result = rotate_values(layer, config, make_rotation(config.head_dim, number))
        assert len(result) == 3  # weights and biases of v, columns of o
        prefix = f"{dialect_checkpoint.prefix}{number}."
        changed |= {prefix + name: array for name, array in result.items()}
    assert dialect_checkpoint.error_with(changed, tmp_path / "rotated") < 1e-10


def test_the_residual_stream_is_rotated_where_norms_allow_it(
    dialect_checkpoint: DialectCheckpoint, tmp_path: Path
) -> None:
    config = dialect_checkpoint.config
    rotation = make_rotation(config.hidden_size)
    if config.has_sandwich_norms:
        with pytest.raises(UnsupportedError, match=r"post_self_attn_layernorm.* heads of v alone"):
            rotate_residual(_wide(dialect_checkpoint, 0), config, rotation)
        return
    tensors = {name: array.astype(np.float64) for name, array in dialect_checkpoint.tensors.items()}
    changed = rotate_ends(tensors, config, rotation)
    for number in range(config.num_hidden_layers):
        result = rotate_residual(_wide(dialect_checkpoint, number), config, rotation)
        prefix = f"{dialect_checkpoint.prefix}{number}."
        changed |= {prefix + name: array for name, array in result.items()}
    assert len(changed) >= 3 + 6 * config.num_hidden_layers
    # Hugging Face's norms compute in float32, on other numbers here than there.
    assert dialect_checkpoint.error_with(changed, tmp_path / "rotated") < 3e-6


def test_tensors_keep_their_dtype_and_are_not_written_to(
    dialect_checkpoint: DialectCheckpoint,
) -> None:
    config, layer = dialect_checkpoint.config, dialect_checkpoint.layer(0)
    before = {name: array.copy() for name, array in layer.items()}
    result = rotate_values(layer, config, make_rotation(config.head_dim))
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(layer[name], before[name]) for name in layer)


def test_outliers_are_spread(dialect_checkpoint: DialectCheckpoint) -> None:
    config = dialect_checkpoint.config
    samples = dialect_checkpoint.inputs[0][QKV].samples
    rotated = samples @ make_rotation(config.hidden_size)
    peaks = [np.abs(x).max() / np.sqrt(np.mean(x**2)) for x in (samples, rotated)]
    assert peaks[1] < peaks[0] / 2


def test_tied_embeddings_are_refused(dialect_checkpoint: DialectCheckpoint) -> None:
    config = replace(dialect_checkpoint.config, model_type="glm", tie_word_embeddings=True)
    with pytest.raises(UnsupportedError, match="tie_word_embeddings=true"):
        check_residual_rotation(config)
