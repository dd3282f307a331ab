"""Columns of each rank: what they add up, and what cards exchange of it."""

from dataclasses import replace

import numpy as np
import pytest

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.quantizer.linear_input import LinearInput
from mindformers_glm.quantizer.rank_parts import (
    ExchangeObserver,
    add_floats,
    check_cut,
    cut_columns,
    join_parts,
)
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.quantizer.rounding import round_module

_SAMPLES = [slice(0, 3), slice(3, 10)]


def _outputs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [scale * rng.standard_normal((10, 6)).astype(np.float32) for scale in (1, 5)]


def _fake_quantize(values: np.ndarray) -> np.ndarray:
    """By PyTorch: symmetric int8 of each column."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(values)
    scales = x.abs().amax(dim=0) / 127
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(x, scales, zeros, 1, -127, 127)
    return np.asarray(rounded.numpy())


def test_sums_are_rounded_as_int8_of_each_output_by_the_ranges_of_a_sample() -> None:
    outputs = _outputs()
    found = ExchangeObserver(_SAMPLES).add_up(outputs)
    for rows in _SAMPLES:
        parts = [_fake_quantize(part[rows]) for part in outputs]
        np.testing.assert_allclose(found[rows], _fake_quantize(sum(parts)), rtol=1e-5, atol=1e-6)
    assert np.abs(found - add_floats(outputs)).max() > 1e-3


def test_scales_of_sums_are_of_all_samples() -> None:
    outputs = _outputs()
    observer = ExchangeObserver(_SAMPLES)
    observer.add_up(outputs)
    for part, scales in zip(outputs, observer.scales.of_parts, strict=True):
        np.testing.assert_allclose(scales, np.abs(part).max(axis=0) / 127, rtol=1e-6)
    of_floats = np.abs(add_floats(outputs)).max(axis=0) / 127
    np.testing.assert_allclose(observer.scales.of_sum, of_floats, rtol=0.02)


def test_outputs_that_are_all_zero_stay_zero() -> None:
    found = ExchangeObserver(_SAMPLES).add_up([np.zeros((10, 2), np.float32)] * 2)
    np.testing.assert_array_equal(found, 0)


def test_floats_are_added_up_without_changing_them() -> None:
    outputs = _outputs()
    before = [part.copy() for part in outputs]
    np.testing.assert_allclose(add_floats(outputs), before[0] + before[1], rtol=1e-6)
    np.testing.assert_array_equal(outputs, before)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_parts_side_by_side_are_the_weight(is_symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 16)).astype(np.float32) * np.repeat([1, 9], 8)
    weight = weight.astype(np.float32)
    recipe = Recipe(is_symmetric=is_symmetric)
    cuts = cut_columns(16, 2)
    parts = [round_module("x", weight[:, cut], None, recipe) for cut in cuts]
    joined = join_parts("o_proj", parts)
    expected = np.concatenate([part.rows.dequantized() for part in parts], axis=1)
    np.testing.assert_array_equal(joined.rows.dequantized(), expected)
    assert (joined.name, joined.label, joined.parts) == ("o_proj", "W8A16", tuple(parts))
    # Narrow columns have steps of their own, and not those of the wide ones.
    whole = round_module("x", weight, None, recipe, LinearInput(weight, _SAMPLES))
    error = np.abs(whole.rows.dequantized() - weight)[:, :8].max()
    assert np.abs(joined.rows.dequantized() - weight)[:, :8].max() < error / 3
    assert replace(joined, parts=()).rows.scales.shape == (6, 2)


def test_columns_that_ranks_do_not_divide_are_one_sentence() -> None:
    check_cut("o_proj", 64, 16)
    with pytest.raises(UnsupportedError, match="o_proj has 20 columns, which 8 ranks do not"):
        check_cut("o_proj", 20, 8)
