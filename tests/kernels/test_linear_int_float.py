"""Linear layers on integers with float32 activations give the bits of the matrix that is meant."""

from collections.abc import Callable

import numpy as np
import pytest
from aot_call import call

from tests.kernels.kernel_calls import UNTOUCHED, count, output, packed, scalar
from tests.kernels.test_linear_int_affine import FORMATS, Format, Matrix

EPS = 1e-5
SHAPES = [(8, 5), (65, 17), (190, 50), (1100, 33), (2080, 70), (4200, 20)]
ALL_FORMATS = [
    Format(8, 0, False, False),
    Format(4, 64, False, False),
    Format(4, 128, False, False),
    *FORMATS,
]
each_format = pytest.mark.parametrize("form", ALL_FORMATS, ids=str)


def _symbol(form: Format, name: str) -> str:
    return form.symbol(name).replace("a16", "a32")


def _meant(matrix: Matrix) -> np.ndarray:
    """(q - zeros) * scales in float32, columns in the order of x."""
    k = matrix.num_columns
    spread = matrix.form.group or k
    zeros = np.zeros_like(matrix.scales) if matrix.zeros is None else matrix.zeros
    difference = matrix.q - np.repeat(zeros, spread, axis=1)[:, :k]
    weight = difference.astype(np.float32) * np.repeat(matrix.scales, spread, axis=1)[:, :k]
    if matrix.order is not None:
        weight[:, matrix.order] = weight.copy()
    return weight


@each_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_those_of_the_float_matrix(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], form: Format
) -> None:
    k, n = shape
    matrix = Matrix(rng, n, k, form)
    tiles = packed(_meant(matrix), "float32")
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((18, k)).astype(np.float32)
    for m in (0, 1, 2, 5, 17):
        name = _symbol(form, "linear")
        found = call(name, x, *matrix.operands(), count(m), bias, out=output(18, n))
        expected = call("glm_linear_f32", x, tiles, count(m), bias, out=output(18, n))
        _assert_same(found, expected, is_reordered=form.is_ordered)
        assert (found[m:] == UNTOUCHED).all()


@each_format
def test_norms_and_gates_are_those_of_the_float_matrix(
    isa: str, rng: np.random.Generator, form: Format
) -> None:
    k, n = 1056, 180
    matrix = Matrix(rng, n, k, form)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x = rng.standard_normal((18, k)).astype(np.float32)
    for name, width in (("norm_linear", n), ("norm_gated_linear", n // 2)):
        is_gated = width < n
        tiles = packed(_meant(matrix), "float32", is_gated)
        for m in (1, 17):
            inputs = (x, norm, scalar(EPS))
            operands = (*matrix.operands(is_gated), count(m))
            found = call(_symbol(form, name), *inputs, *operands, out=output(18, width))
            expected = call(f"glm_{name}_f32", *inputs, tiles, count(m), out=output(18, width))
            _assert_same(found, expected, is_reordered=form.is_ordered)


@pytest.mark.parametrize("bits", [8, 4])
def test_results_do_not_depend_on_the_number_of_threads(
    isa: str, rng: np.random.Generator, bits: int, set_num_threads: Callable[[int], None]
) -> None:
    form, k, n = Format(bits, 128, True, True), 1100, 22 * 16
    matrix = Matrix(rng, n, k, form)
    x = rng.standard_normal((7, k)).astype(np.float32)
    found = []
    for num_threads in (1, 2, 5, 40):
        set_num_threads(num_threads)
        inputs = (x, *matrix.operands(), count(7))
        found.append(call(_symbol(form, "linear"), *inputs, out=output(7, n)))
        np.testing.assert_array_equal(found[-1], found[0])


def _assert_same(found: np.ndarray, expected: np.ndarray, is_reordered: bool) -> None:
    """Every bit, but where sums have another order."""
    if is_reordered:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, expected)
