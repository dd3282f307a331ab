"""Integers of weights: by their definition, and what a recipe may not ask for."""

import numpy as np
import pytest

from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, MIXED, STATIC
from mindformers_glm.quantizer.recipe import AWQ, GPTQ, Recipe
from mindformers_glm.quantizer.result import QuantizedModule
from mindformers_glm.quantizer.rounding import check_recipe, label_of, round_module

W8A8 = Recipe(activation=STATIC)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)


def _round(weight: np.ndarray, recipe: Recipe) -> QuantizedModule:
    return round_module("layer", weight, None, recipe)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [None, 32])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_no_weight_is_further_off_than_half_a_step(
    bits: int, group_size: int | None, is_symmetric: bool, weight: np.ndarray
) -> None:
    recipe = Recipe(weight_bits=bits, group_size=group_size, is_symmetric=is_symmetric)
    rows = _round(weight, recipe).rows
    steps = np.repeat(rows.scales, 64 // rows.scales.shape[1], axis=1)
    assert (np.abs(rows.dequantized() - weight) <= steps * 0.5001).all()
    grouped = weight.reshape(6, -1, group_size or 64)
    extent = np.ptp(grouped, axis=2) / (2**bits - 1)
    if is_symmetric:
        extent = np.abs(grouped).max(axis=2) / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(rows.scales, extent, rtol=1e-6)
    assert (rows.zeros is None) == is_symmetric


def test_symmetric_codes_leave_out_the_lowest(weight: np.ndarray) -> None:
    assert _round(-np.abs(weight), Recipe()).rows.codes.min() == -127
    assert _round(-np.abs(weight), Recipe(weight_bits=4)).rows.codes.min() == -7


def test_a_row_of_zeros_stays_zero(weight: np.ndarray) -> None:
    weight[2] = 0
    for recipe in (Recipe(), Recipe(is_symmetric=False), Recipe(activation=STATIC, is_sparse=True)):
        rows = _round(weight, recipe).rows
        assert not rows.dequantized()[2].any()
        assert (rows.scales > 0).all()


def test_a_whole_weight_has_one_scale_that_stands_in_each_row(weight: np.ndarray) -> None:
    rows = _round(weight, Recipe(is_per_tensor=True)).rows
    assert rows.scales.shape == (6, 1)
    assert (rows.scales == np.abs(weight).max() / np.float32(127)).all()
    assert np.abs(rows.dequantized() - weight).max() <= rows.scales[0, 0] * 0.5001


def test_two_levels_multiply_to_the_scales_of_groups(weight: np.ndarray) -> None:
    module = _round(weight, Recipe(weight_bits=4, activation=DYNAMIC, group_size=32))
    assert module.first_scales is not None
    assert module.second_scales is not None
    assert module.first_scales.shape == (6, 1)
    np.testing.assert_array_equal(module.rows.scales, module.first_scales * module.second_scales)
    steps = np.repeat(module.rows.scales, 32, axis=1)
    assert (np.abs(module.rows.dequantized() - weight) <= steps * 0.5001).all()
    # What a device multiplies first are int8 numbers: codes times the scales of groups.
    assert np.abs(module.rows.codes * np.repeat(module.second_scales, 32, axis=1)).max() <= 127.001


@pytest.mark.parametrize(
    ("recipe", "label"),
    [
        (W8A8, "W8A8"),
        (Recipe(activation=STATIC, is_sparse=True), "W8A8S"),
        (Recipe(activation=MIXED), "W8A8_MIX"),
        (Recipe(activation=DYNAMIC), "W8A8_DYNAMIC"),
        (Recipe(weight_bits=4, activation=DYNAMIC), "W4A8_DYNAMIC"),
        (Recipe(activation=FLOAT), "W8A16"),
        (Recipe(weight_bits=4), "W4A16"),
    ],
)
def test_schemes_have_the_tools_names(recipe: Recipe, label: str) -> None:
    check_recipe(recipe)
    assert label_of(recipe) == label


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe(weight_bits=3), "4 or 8 bits"),
        (Recipe(weight_bits=4, activation=STATIC), "by token"),
        (Recipe(activation=STATIC, group_size=64), "leave the groups out"),
        (Recipe(activation=DYNAMIC, is_symmetric=False), "w_sym"),
        (Recipe(is_sparse=True), "static"),
        (Recipe(is_per_tensor=True, group_size=64), "mm_tensor"),
        (Recipe(rounding="up"), "'up'"),
        (Recipe(rounding=AWQ, anti_method="m1"), "leave anti_method out"),
        (Recipe(activation=STATIC, is_sparse=True, rounding=GPTQ), "nearest only"),
    ],
)
def test_what_is_no_scheme_is_refused(recipe: Recipe, says: str) -> None:
    with pytest.raises((ConfigError, UnsupportedError), match=says):
        check_recipe(recipe)


def test_groups_that_do_not_divide_the_columns_are_refused(weight: np.ndarray) -> None:
    with pytest.raises(UnsupportedError, match=r"layer has 64 columns, which groups of 48"):
        _round(weight, Recipe(weight_bits=4, group_size=48))


def test_sparse_weights_without_outliers_reach_to_seven(weight: np.ndarray) -> None:
    rows = _round(weight, Recipe(activation=STATIC, is_sparse=True)).rows
    assert (np.abs(rows.codes).max(axis=1) == 7).all()


def test_sparse_weights_with_sigma_have_outliers_beyond_seven(weight: np.ndarray) -> None:
    weight[:, 5] *= 20
    recipe = Recipe(activation=STATIC, is_sparse=True, use_sigma=True, sigma_factor=2.0)
    codes = _round(weight, recipe).rows.codes
    inliers = np.abs(weight) <= 2.0 * weight.std(axis=1, keepdims=True)
    assert np.abs(codes[inliers]).max() == 7
    assert np.abs(codes[~inliers]).max() > 7
    assert np.abs(codes.astype(int)).max() <= 127


def test_co_sparse_takes_the_fraction_of_largest_weights_as_outliers() -> None:
    weight = np.random.default_rng(3).standard_normal((32, 128)).astype(np.float32)
    recipe = Recipe(activation=STATIC, is_sparse=True, is_co_sparse=True, fraction=0.01)
    codes = np.abs(_round(weight, recipe).rows.codes)
    assert 0 < (codes > 7).sum() <= 0.01 * weight.size
    assert 0.08 < (codes == 0).mean() < 0.25
