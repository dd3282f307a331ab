"""Errors of quantized linears, against NumPy's plain definitions."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, STATIC
from mindformers_glm.quantizer.output_error import (
    OUTPUTS,
    WEIGHTS,
    measure_error,
    measure_weight_error,
    spread_rows,
)
from mindformers_glm.quantizer.pipeline import quantize
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.quantizer.rounding import round_module
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.e2e.random_checkpoint import write_checkpoint

_SAMPLES = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7]]


def test_errors_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((5, 7)).astype(np.float32)
    others = floats + rng.standard_normal((5, 7)).astype(np.float32) * np.float32(0.1)
    found = measure_error(OUTPUTS, [(floats[:2], others[:2]), (floats[2:], others[2:])])
    wide, other_wide = floats.astype(np.float64).ravel(), others.astype(np.float64).ravel()
    noise = other_wide - wide
    assert found.snr_db == pytest.approx(10 * np.log10(wide @ wide / (noise @ noise)), rel=1e-5)
    cosine = wide @ other_wide / np.linalg.norm(wide) / np.linalg.norm(other_wide)
    assert found.cosine == pytest.approx(cosine, rel=1e-6)
    assert found.largest == pytest.approx(np.abs(noise).max(), rel=1e-6)
    assert found.largest_value == np.abs(floats).max()


@pytest.mark.parametrize(
    ("value", "other", "snr_db", "cosine"), [(2, 2, 200, 1), (0, 0, 200, 1), (0, 1, -200, 0)]
)
def test_no_error_and_no_signal_have_finite_figures(
    value: float, other: float, snr_db: float, cosine: float
) -> None:
    pair = (np.full((1, 3), value, np.float32), np.full((1, 3), other, np.float32))
    found = measure_error(OUTPUTS, [pair])
    assert (found.snr_db, found.cosine) == (snr_db, pytest.approx(cosine))


@pytest.mark.parametrize("num_rows", [1, 127, 128, 129, 1024, 1025, 5000])
def test_rows_to_measure_on_are_spread(num_rows: int) -> None:
    chunks = spread_rows(num_rows)
    taken = np.concatenate([np.arange(num_rows)[rows] for rows in chunks])
    assert len(set(taken.tolist())) == len(taken)
    assert min(num_rows, 900) <= len(taken) <= 1024
    assert taken[0] == 0
    if num_rows <= 1024:
        assert len(taken) == num_rows


def test_errors_of_groups_of_a_weight() -> None:
    weight = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    recipe = Recipe(weight_bits=4, group_size=32, is_symmetric=False)
    rows = round_module("x", weight, None, recipe).rows
    found = measure_weight_error(weight, rows)
    noise = rows.dequantized() - weight
    expected = 10 * np.log10((weight.astype(np.float64) ** 2).sum() / (noise**2).sum())
    assert found.measured_on == WEIGHTS
    assert found.snr_db == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(activation=STATIC), Recipe(activation=DYNAMIC), Recipe(weight_bits=4, group_size=16)],
    ids=["static", "dynamic", "int4"],
)
def test_every_module_has_an_error_that_resuming_keeps(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    runs = []
    with Checkpoint.open(folder) as checkpoint:
        for _ in range(2):
            runs.append(list(quantize(checkpoint, recipe, _SAMPLES, tmp_path / "work")))
    errors = [module.error for result in runs[0] for module in result.modules]
    assert errors == [module.error for result in runs[1] for module in result.modules]
    assert len(errors) == 12
    for error in errors:
        assert error is not None
        assert error.measured_on == OUTPUTS
        least = 35 if recipe.activation == DYNAMIC else 10
        assert least < error.snr_db < 60
        assert 0.9 < error.cosine < 1
        assert 0 < error.largest < error.largest_value


def test_without_samples_errors_are_those_of_weights(tmp_path: Path) -> None:
    with Checkpoint.open(write_checkpoint(tmp_path)) as checkpoint:
        results = list(quantize(checkpoint, Recipe(activation=FLOAT), [], tmp_path / "work"))
    errors = [module.error for result in results for module in result.modules]
    assert {error.measured_on for error in errors if error} == {WEIGHTS}


def test_the_error_of_a_linear_is_that_of_its_own_rounding(tmp_path: Path) -> None:
    with Checkpoint.open(write_checkpoint(tmp_path)) as checkpoint:
        first = next(iter(quantize(checkpoint, Recipe(weight_bits=4), _SAMPLES, tmp_path / "work")))
        name = "model.layers.0.self_attn.q_proj"
        module = next(module for module in first.modules if module.name == name)
        tokens = [token for sample in _SAMPLES for token in sample]
        x = checkpoint.array("model.embed_tokens.weight")[tokens].astype(np.float64)
        x /= np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
        x *= checkpoint.array("model.layers.0.input_layernorm.weight")
        weight, bias = (checkpoint.array(f"{name}.{end}") for end in ("weight", "bias"))
        expected, found = (x @ w.T + bias for w in (weight, module.rows.dequantized()))
    assert module.error is not None
    noise = found - expected
    snr_db = 10 * np.log10((expected**2).sum() / (noise**2).sum())
    assert module.error.snr_db == pytest.approx(snr_db, abs=1e-3)
    assert module.error.largest == pytest.approx(np.abs(noise).max(), rel=1e-3)
