"""GPTQ beside a plain float64 version of the paper's algorithm, and beside rounding to nearest."""

import itertools

import numpy as np
import pytest

from mindformers_glm.quantizer.gptq import GptqOptions, choose_damping, fit_clipped, round_gptq
from mindformers_glm.quantizer.weight_grid import WeightGrid

PLAIN = GptqOptions(has_act_order=False, num_clip_steps=0)
GRIDS = [
    WeightGrid(bits, size, is_symmetric)
    for bits, size, is_symmetric in itertools.product((4, 8), (None, 16), (True, False))
]


def _problem(
    rows: int = 20, columns: int = 64, seed: int = 0, num_tokens: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and inputs whose channels are correlated and of different sizes."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) / 8 + np.eye(columns)
    spread = np.exp(rng.standard_normal(columns))
    inputs = rng.standard_normal((num_tokens, columns)) @ mixing * spread
    weight = rng.standard_normal((rows, columns)).astype(np.float32) / 10
    return weight, inputs.astype(np.float32)


def _hessian(inputs: np.ndarray) -> np.ndarray:
    return inputs.T.astype(np.float64) @ inputs


def _brute_force(weight: np.ndarray, hessian: np.ndarray, grid: WeightGrid) -> np.ndarray:
    """The paper's algorithm 1, column by column with the inverse of H, in float64.

    Scales of a group are of its weights when its first column's turn comes.
    """
    left = weight.astype(np.float64)
    damped = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    inverse = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper triangular
    size = grid.group_size or weight.shape[1]
    result = np.empty_like(left)
    for column in range(weight.shape[1]):
        if column % size == 0:
            group = left[:, column : column + size]
            scales, zeros = grid.fit(group.min(axis=1), group.max(axis=1))
        codes = np.rint(left[:, column] / scales + (0 if zeros is None else zeros))
        half = 2 ** (grid.bits - 1)
        codes = np.clip(codes, -half, half - 1)
        result[:, column] = (codes - (0 if zeros is None else zeros)) * scales
        error = (left[:, column] - result[:, column]) / inverse[column, column]
        left[:, column:] -= np.outer(error, inverse[column, column:])
    return result


def _error(weight: np.ndarray, rounded: np.ndarray, inputs: np.ndarray) -> float:
    return float(np.sum(((weight - rounded) @ inputs.T.astype(np.float64)) ** 2))


def _damped_errors(errors: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """e H e^T of each row, H with the usual damping."""
    hessian = _hessian(inputs)
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    return np.einsum("ri,ij,rj->r", errors, hessian, errors)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_columns_are_rounded_as_in_the_paper(grid: WeightGrid) -> None:
    weight, inputs = _problem()
    found = round_gptq(weight, _hessian(inputs), grid, PLAIN).rows
    expected = _brute_force(weight, _hessian(inputs), grid)
    # A value that lies between two codes may fall to either side, and moves those behind it.
    is_same = np.isclose(found.dequantized(), expected, atol=1e-5).all(axis=1)
    nearest = grid.round_trip(weight)
    is_nearest = np.isclose(found.dequantized(), nearest, atol=1e-5).all(axis=1)
    # A value that lies between two codes may fall to either side, and moves those behind it.
    assert np.mean(is_same | is_nearest) >= 0.95
    assert np.mean(is_same) >= 0.8
    mine, theirs = (_damped_errors(weight - each, inputs) for each in (nearest, expected))
    assert np.all(mine[is_nearest & ~is_same] < theirs[is_nearest & ~is_same])


def test_many_columns_are_rounded_as_in_the_paper() -> None:
    weight, inputs = _problem(rows=8, columns=300, num_tokens=700)
    found = round_gptq(weight, _hessian(inputs), WeightGrid(4), PLAIN).rows
    expected = _brute_force(weight, _hessian(inputs), WeightGrid(4))
    is_same = np.isclose(found.dequantized(), expected, atol=1e-5).all(axis=1)
    nearest = WeightGrid(4).round_trip(weight)
    is_nearest = np.isclose(found.dequantized(), nearest, atol=1e-5).all(axis=1)
    assert np.mean(is_same | is_nearest) >= 0.8
    assert np.mean(is_same) >= 0.5


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("has_act_order", "has_static_groups"), [(False, False), (True, False), (True, True)]
)
def test_error_is_below_that_of_rounding_to_nearest(
    grid: WeightGrid, has_act_order: bool, has_static_groups: bool
) -> None:
    options = GptqOptions(has_act_order=has_act_order, has_static_groups=has_static_groups)
    for seed in range(3):
        weight, inputs = _problem(seed=seed)
        found = round_gptq(weight, _hessian(inputs), grid, options)
        rounded = found.rows.dequantized()
        nearest = _error(weight, grid.round_trip(weight), inputs)
        assert _error(weight, rounded, inputs) < nearest
        assert found.error < found.nearest_error
        damped = _damped_errors(weight - rounded, inputs).sum()
        assert found.error == pytest.approx(damped, rel=1e-3)


@pytest.mark.parametrize(
    ("num_tokens", "damping"), [(1, 0.01), (64, 0.01), (256, 0.0025), (10**6, 0.001)]
)
def test_many_tokens_need_less_damping(num_tokens: int, damping: float) -> None:
    assert choose_damping(num_tokens, num_channels=64) == pytest.approx(damping)


def test_rows_that_are_better_rounded_plainly_are() -> None:
    # One token: but for the damping, every column may take up what another leaves; clipped ranges
    # are chosen by what columns cost each by itself.
    for seed in range(20):
        weight, inputs = _problem(rows=64, columns=16, seed=seed, num_tokens=1)
        hessian = _hessian(inputs) + np.eye(16)
        found = round_gptq(weight, hessian, WeightGrid(4), GptqOptions(damping=0.0))
        plain = weight - WeightGrid(4).round_trip(weight)
        mine = weight - found.rows.dequantized()
        errors, limits = (np.einsum("ri,ij,rj->r", e, hessian, e) for e in (mine, plain))
        assert np.all(errors <= limits * (1 + 1e-4))


@pytest.mark.parametrize("has_static_groups", [False, True])
def test_codes_scales_and_groups_fit_together(has_static_groups: bool) -> None:
    weight, inputs = _problem(rows=6, columns=40)
    grid = WeightGrid(4, 16, is_symmetric=False)
    options = GptqOptions(has_static_groups=has_static_groups)
    rows = round_gptq(weight, _hessian(inputs), grid, options).rows
    assert rows.codes.dtype == np.int8
    assert (rows.codes.min(), rows.codes.max()) == (-8, 7)
    assert rows.zeros is not None
    assert rows.scales.shape == rows.zeros.shape == (6, 3)
    assert np.bincount(rows.groups).tolist() == [16, 16, 8]
    is_natural = np.array_equal(rows.groups, np.arange(40) // 16)
    assert is_natural == has_static_groups
    assert np.abs(weight - rows.dequantized()).max() < 0.2


def test_columns_with_the_largest_inputs_are_in_the_first_group() -> None:
    weight, inputs = _problem()
    inputs[:, 50:] *= 100
    rows = round_gptq(weight, _hessian(inputs), WeightGrid(4, 16)).rows
    assert set(rows.groups[50:]) == {0}


@pytest.mark.parametrize("group_size", [None, 16])
def test_inputs_that_are_zero_leave_rounding_to_nearest(group_size: int | None) -> None:
    weight, inputs = _problem()
    grid = WeightGrid(4, group_size)
    found = round_gptq(weight, _hessian(inputs * 0), grid, PLAIN)
    assert np.allclose(found.rows.dequantized(), grid.round_trip(weight), atol=1e-6)


def test_channels_that_repeat_each_other_are_rounded_too() -> None:
    weight, inputs = _problem(num_tokens=3)
    inputs[:, 1::2] = inputs[:, ::2]
    options = GptqOptions(damping=0.0)
    found = round_gptq(weight, _hessian(inputs), WeightGrid(4), options)
    assert np.isfinite(found.rows.dequantized()).all()
    nearest = WeightGrid(4).round_trip(weight)
    assert _error(weight, found.rows.dequantized(), inputs) < _error(weight, nearest, inputs)


def test_weights_that_are_zero_stay_zero() -> None:
    weight, inputs = _problem()
    weight[3] = 0
    rows = round_gptq(weight, _hessian(inputs), WeightGrid(4, 16, is_symmetric=False)).rows
    assert not rows.dequantized()[3].any()


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_clipped_ranges_are_the_best_of_those_tried(is_symmetric: bool) -> None:
    grid = WeightGrid(4, is_symmetric=is_symmetric)
    weights = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    importance = np.linspace(0, 1, 64, dtype=np.float32)
    scales, zeros = fit_clipped(grid, weights, importance, 10)
    for row in range(5):
        column = weights[:, row].astype(np.float64)
        errors = {}
        for share in np.linspace(1, 0.3, 11):
            low, high = column.min() * share, column.max() * share
            step = max(-low, high) / 7 if is_symmetric else (high - low) / 15
            zero = 0 if is_symmetric else np.round(-low / step) - 8
            codes = np.clip(np.round(column / step + zero), -8, 7)
            errors[step, zero] = importance @ ((codes - zero) * step - column) ** 2
        step, zero = min(errors, key=lambda key: errors[key])
        assert scales[row] == pytest.approx(step, rel=1e-5)
        assert (0 if zeros is None else zeros[row]) == zero
