"""Linear layers on integers with zero points, int8 in groups, columns in another order."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from aot_call import KernelRefusedError, call

from mindformers_glm.backends.cpu import library
from tests.conftest import TOLERANCES, relative_error
from tests.kernels import reference
from tests.kernels.kernel_calls import (
    UNTOUCHED,
    count,
    output,
    packed_ints,
    packed_zeros,
    scalar,
)

EPS = 1e-5
ROW_COUNTS = [0, 1, 2, 3, 5, 8, 9, 16, 17, 33, 40]
# (K, N): less than a group, whole tiles, one over, int8 tiles that end in the middle of 128 columns
SHAPES = [(8, 5), (64, 16), (65, 17), (190, 50), (1024, 16), (1100, 33), (2080, 70)]
NORM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Format:
    """What an operator is given besides tiles and scales."""

    bits: int
    group: int
    has_zeros: bool
    is_ordered: bool

    def __str__(self) -> str:
        ends = "-zeros" * self.has_zeros + "-ordered" * self.is_ordered
        return f"{self.bits}-{self.group}{ends}"

    def symbol(self, form: str) -> str:
        """The operator's name."""
        ends = "_zeros" * self.has_zeros + "_ordered" * self.is_ordered
        return f"glm_{form}_w{self.bits}a16{ends}"


FORMATS = [
    Format(8, 0, True, False),
    Format(8, 0, False, True),
    Format(8, 32, False, False),
    Format(8, 64, True, False),
    Format(8, 128, False, False),
    Format(8, 128, True, True),
    Format(4, 32, True, False),
    Format(4, 64, True, True),
    Format(4, 128, True, False),
    Format(4, 128, False, True),
]
each_format = pytest.mark.parametrize("form", FORMATS, ids=str)


class Matrix:
    """Random integers of the whole range with scales, zero points and an order.

    has_far_zeros: zero points are codes, but of int4 some are as far off as a byte reaches.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        n: int,
        k: int,
        form: Format,
        has_far_zeros: bool = False,
    ) -> None:
        self.form, self.num_columns = form, k
        most = 1 << (form.bits - 1)
        groups = -(-k // form.group) if form.group else 1
        self.q = rng.integers(-most, most, (n, k), dtype=np.int32)
        scales = rng.uniform(0.5, 1.5, (n, groups)) / (most * np.sqrt(k))
        self.scales = scales.astype(np.float32)
        zeros = rng.integers(-most, most, (n, groups), dtype=np.int32)
        if has_far_zeros:
            zeros[::3, 0] = 255 - most
        self.zeros = zeros if form.has_zeros else None
        self.order = rng.permutation(k).astype(np.int32) if form.is_ordered else None

    def operands(self, is_gated: bool = False) -> tuple[np.ndarray, ...]:
        """As the operators take them."""
        settings = (self.form.bits, self.form.group, is_gated)
        arrays: tuple[np.ndarray, ...] = packed_ints(self.q, self.scales, *settings)
        if self.zeros is not None:
            arrays += (packed_zeros(self.zeros, self.num_columns, *settings),)
        return arrays if self.order is None else (*arrays, self.order)

    @property
    def meaning(self) -> dict[str, Any]:
        """As the reference takes them."""
        return {
            "q_weight": self.q,
            "scales": self.scales,
            "group_size": self.form.group,
            "zeros": self.zeros,
            "order": self.order,
        }


@each_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_equals_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], form: Format
) -> None:
    k, n = shape
    matrix = Matrix(rng, n, k, form, has_far_zeros=True)
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((ROW_COUNTS[-1] + 1, k)).astype(np.float32)
    expected = reference.quantized_linear(x, num_rows=len(x), bias=bias, **matrix.meaning)
    for m in ROW_COUNTS:
        name = form.symbol("linear")
        y = call(name, x, *matrix.operands(), count(m), bias, out=output(len(x), n))
        if m:
            assert relative_error(y[:m], expected[:m]) < TOLERANCES["kernel_float32"], m
        assert (y[m:] == UNTOUCHED).all(), "rows that are not real were written"


@each_format
@pytest.mark.parametrize("shape", [(65, 17), (1100, 33)], ids=str)
def test_norm_linear_equals_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], form: Format
) -> None:
    k, n = shape
    matrix = Matrix(rng, n, k, form)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x = 30 * rng.standard_normal((40, k)).astype(np.float32)
    for m in (1, 5, 40):
        inputs = (x, norm, scalar(EPS), *matrix.operands(), count(m))
        y = call(form.symbol("norm_linear"), *inputs, out=output(len(x), n))
        expected = reference.quantized_norm_linear(x, norm, EPS, num_rows=m, **matrix.meaning)
        assert relative_error(y[:m], expected[:m]) < NORM_TOLERANCE, m


@each_format
@pytest.mark.parametrize("shape", [(8, 5), (130, 16), (1056, 90)], ids=str)
def test_gated_linear_equals_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], form: Format
) -> None:
    k, ffn = shape
    matrix = Matrix(rng, 2 * ffn, k, form)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x = rng.standard_normal((40, k)).astype(np.float32)
    for m in (1, 5, 40):
        inputs = (x, norm, scalar(EPS), *matrix.operands(is_gated=True), count(m))
        y = call(form.symbol("norm_gated_linear"), *inputs, out=output(len(x), ffn))
        expected = reference.quantized_norm_gated_linear(x, norm, EPS, num_rows=m, **matrix.meaning)
        assert relative_error(y[:m], expected[:m]) < 3 * NORM_TOLERANCE, m


@each_format
def test_a_row_does_not_depend_on_the_rows_beside_it(
    isa: str, rng: np.random.Generator, form: Format
) -> None:
    k, n = 1088, 160
    matrix = Matrix(rng, n, k, form)
    x = rng.standard_normal((65, k)).astype(np.float32)

    def run(rows: np.ndarray) -> np.ndarray:
        out = output(len(rows), n)
        return call(form.symbol("linear"), rows, *matrix.operands(), count(len(rows)), out=out)

    together = run(x)
    for begin, end in [(0, 1), (64, 65), (3, 5), (10, 17), (16, 33), (1, 9), (0, 64)]:
        np.testing.assert_array_equal(run(x[begin:end]), together[begin:end])


@each_format
def test_instruction_sets_agree(rng: np.random.Generator, form: Format) -> None:
    k, n, m = 1100, 40, 37
    matrix = Matrix(rng, n, k, form)
    x = rng.standard_normal((m, k)).astype(np.float32)
    results = {}
    before = library.isa()
    for isa in library.available_isas():
        library.select_isa(isa)
        inputs = (x, *matrix.operands(), count(m))
        results[isa] = call(form.symbol("linear"), *inputs, out=output(m, n))
    library.select_isa(before)
    portable = results.pop("portable")
    for result in results.values():
        np.testing.assert_array_equal(result, next(iter(results.values())))
        assert relative_error(result, portable) < 1e-6


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128)])
def test_zero_points_in_the_middle_give_the_bits_of_symmetric_weights(
    isa: str, rng: np.random.Generator, bits: int, group: int
) -> None:
    k, n = 1100, 33
    matrix = Matrix(rng, n, k, Format(bits, group, True, False))
    arrays = packed_ints(matrix.q, matrix.scales, bits, group)
    middle = packed_zeros(np.zeros_like(matrix.zeros), k, bits, group)
    x = rng.standard_normal((20, k)).astype(np.float32)
    for m in (1, 20):
        plain = call(f"glm_linear_w{bits}a16", x, *arrays, count(m), out=output(20, n))
        name = f"glm_linear_w{bits}a16_zeros"
        found = call(name, x, *arrays, middle, count(m), out=output(20, n))
        np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize(
    ("bits", "group", "code", "zero"),
    [(8, 128, -128, 127), (8, 0, 127, -128), (4, 128, -8, 247), (4, 32, 7, -8)],
)
def test_extreme_integers_do_not_overflow(
    isa: str, bits: int, group: int, code: int, zero: int
) -> None:
    k = 512
    groups = k // (group or k)
    q, scales = np.full((3, k), code, np.int32), np.ones((3, groups), np.float32)
    zeros = packed_zeros(np.full((3, groups), zero), k, bits, group)
    x = np.repeat(np.float32([[-1.0], [1.0], [1e30], [-1e-25]]), k, axis=1)
    arrays = (*packed_ints(q, scales, bits, group), zeros)
    y = call(f"glm_linear_w{bits}a16_zeros", x, *arrays, count(4), out=output(4, 3))
    exact = np.repeat(x[:, :1].astype(np.float64) * k * (code - zero), 3, axis=1)
    np.testing.assert_allclose(y, exact, rtol=1e-6)


@each_format
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_not_swallowed(
    isa: str, rng: np.random.Generator, form: Format, value: float
) -> None:
    matrix = Matrix(rng, 16, 256, form)
    x = np.ones((2, 256), np.float32)
    x[0, 5] = value
    inputs = (x, *matrix.operands(), count(2))
    y = call(form.symbol("linear"), *inputs, out=output(2, 16))
    assert not np.isfinite(y[0]).any()
    assert np.isfinite(y[1]).all()


def test_wrong_operands_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    x = np.ones((2, 100), np.float32)
    q, scales = np.ones((20, 100), np.int32), np.ones((20, 4), np.float32)
    tiles, tile_scales = packed_ints(q, scales, 4, 32)
    bytes_, byte_scales = packed_ints(q, scales, 8, 32)
    zeros = packed_zeros(np.zeros((20, 4)), 100, 4, 32)
    order = np.arange(100, dtype=np.int32)

    def refused(words: str, name: str, *inputs: np.ndarray) -> None:
        with pytest.raises(KernelRefusedError):
            call(f"glm_linear_{name}", x, *inputs, count(2), out=output(2, 20))
        assert words in capfd.readouterr().err

    operands = (tiles, tile_scales, zeros, order)
    call("glm_linear_w4a16_zeros_ordered", x, *operands, count(2), out=output(2, 20))
    refused("zeros has size 3 on axis 1", "w4a16_zeros", tiles, tile_scales, zeros[:, :3].copy())
    refused("unexpected type", "w4a16_zeros", tiles, tile_scales, zeros.astype(np.int32))
    refused("parameters", "w4a16_zeros", tiles, tile_scales)
    refused("order has size 99", "w4a16_ordered", tiles, tile_scales, order[:99].copy())
    for wrong in (100, -1):
        order[3] = wrong
        refused("order names a column", "w4a16_ordered", tiles, tile_scales, order)
    refused("scales has size 4 on axis 1", "w8a8", bytes_, byte_scales)
    refused("groups of 32, 64 or 128", "w8a16", bytes_, byte_scales[:, :3].copy())
