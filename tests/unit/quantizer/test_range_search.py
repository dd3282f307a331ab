"""Ranges of static activations by the error of the output that they lead to."""

import numpy as np
import pytest

from mindformers_glm.quantizer.observers import observe, round_static
from mindformers_glm.quantizer.range_search import search_range
from mindformers_glm.quantizer.recipe import HISTOGRAM, MIN_MAX
from mindformers_glm.quantizer.result import StaticRange

_ROWS = [slice(0, 300), slice(300, 600)]


def _inputs() -> np.ndarray:
    """float32 [600, 32], of which channel 3 is forty times as wide."""
    x = np.random.default_rng(4).standard_normal((600, 32)).astype(np.float32)
    x[:, 3] *= 40
    return x


def _weights(of_outliers: float) -> list[np.ndarray]:
    weights = np.random.default_rng(5).standard_normal((2, 16, 32)).astype(np.float32)
    weights[..., 3] *= of_outliers
    return list(weights)


def _error(x: np.ndarray, weights: list[np.ndarray], found: StaticRange) -> float:
    change = round_static(x, found.scale, found.offset) * found.scale - x
    return float(sum(np.square(change @ weight.T).sum(dtype=np.float64) for weight in weights))


@pytest.mark.parametrize("of_outliers", [1e-4, 0.05, 1.0])
def test_the_output_has_no_larger_error_than_by_other_ranges(of_outliers: float) -> None:
    x, weights = _inputs(), _weights(of_outliers)
    error = _error(x, weights, search_range(x, weights))
    for method in (MIN_MAX, HISTOGRAM):
        assert error <= 1.02 * _error(x, weights, observe(x, _ROWS, method).whole)


def test_a_channel_that_weighs_nothing_is_cut_off() -> None:
    x = _inputs()
    weighs, does_not = (search_range(x, _weights(share)) for share in (1.0, 1e-4))
    assert does_not.scale < 0.4 * weighs.scale
    assert weighs.scale * 255 > 0.8 * (x.max() - x.min())


def test_a_value_that_comes_once_and_weighs_much_is_kept() -> None:
    x, weights = _inputs(), _weights(1.0)
    x[311, 3] = 40 * x.max()
    for weight in weights:
        weight[:, 3] *= 30
    found = search_range(x, weights)
    assert found.scale * 255 > 0.8 * x.max()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_inputs_that_are_all_the_same_have_a_range(value: float) -> None:
    x = np.full((4, 8), value, np.float32)
    found = search_range(x, [np.ones((2, 8), np.float32)])
    assert found.scale > 0
    np.testing.assert_allclose(round_static(x, found.scale, found.offset) * found.scale, x)
