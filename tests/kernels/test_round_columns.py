"""Activations rounded column by column against the NumPy reference: the same bits."""

import numpy as np
import pytest
from aot_call import call

from tests.kernels import reference
from tests.kernels.kernel_calls import UNTOUCHED, count, output


def _steps(rng: np.random.Generator, width: int) -> np.ndarray:
    return np.stack([rng.uniform(0.01, 0.2, width), rng.integers(-128, 128, width)]).astype(
        np.float32
    )


@pytest.mark.parametrize("width", [1, 7, 64, 4099])
@pytest.mark.parametrize("num_rows", [0, 1, 33])
def test_rounding_equals_the_reference(rng: np.random.Generator, width: int, num_rows: int) -> None:
    x = (10 * rng.standard_normal((34, width))).astype(np.float32)
    steps = _steps(rng, width)
    y = call("glm_round_columns", x, steps, count(num_rows), out=output(*x.shape))
    np.testing.assert_array_equal(y[:num_rows], reference.round_columns(x, steps, 34)[:num_rows])
    assert (y[num_rows:] == UNTOUCHED).all()


def test_halves_go_to_the_even_integer_and_what_is_no_number_stays(
    rng: np.random.Generator,
) -> None:
    x = np.array([[0.5, 1.5, -0.5, -2.5, np.inf, -np.inf, 1e30, np.nan]], np.float32)
    steps = np.stack([np.ones(8), np.full(8, 3)]).astype(np.float32)
    y = call("glm_round_columns", x, steps, count(1), out=output(1, 8))
    expected = [[1, 1, -1, -3, 124, -131, 124, np.nan]]
    np.testing.assert_array_equal(y, np.array(expected, np.float32))


def test_a_zero_stays_zero_whatever_the_offset(rng: np.random.Generator) -> None:
    steps = _steps(rng, 50)
    y = call("glm_round_columns", np.zeros((1, 50), np.float32), steps, count(1), out=output(1, 50))
    assert not y.any()
