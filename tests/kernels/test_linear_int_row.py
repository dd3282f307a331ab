"""Linear layers whose activations have one scale for a row or for all, against NumPy's integers."""

from collections.abc import Callable

import numpy as np
import pytest
from aot_call import KernelRefusedError, call

from mindformers_glm.backends.cpu import library
from tests.conftest import TOLERANCES, relative_error
from tests.kernels import reference
from tests.kernels.kernel_calls import UNTOUCHED, count, output, packed_ints, scalar
from tests.kernels.reference import StaticProduct
from tests.kernels.test_linear_int import EPS, SHAPES, some_ints

# One token, a block and one over, tiles of 16 and 32 tokens and one over.
ROW_COUNTS = [0, 1, 2, 3, 5, 6, 7, 8, 13, 16, 17, 31, 32, 33]
FORMS = ["token", "static", "mixed"]
# Where a norm is in front, float32 and the reference's float64 may land on two sides of a rounding
# boundary: then an activation differs by one of 127 units.
NORM_TOLERANCE = 2e-3

each_form = pytest.mark.parametrize("form", FORMS)


class Layer:
    """A random layer of one form: its operands, and what it should give."""

    def __init__(
        self,
        rng: np.random.Generator,
        form: str,
        n: int,
        k: int,
        is_gated: bool = False,
        zero_column: int | None = None,
    ) -> None:
        self.form, self.n = form, n
        self.q, self.scales = some_ints(rng, n, k, 8, 0)
        if zero_column is not None:
            self.q[:, zero_column] = 0
        self.static = StaticProduct(
            float(np.float32(0.021)),
            -7.0,
            rng.uniform(0.5, 1.5, n).astype(np.float32) * np.float32(0.021 / 128 / np.sqrt(k)),
            rng.integers(-(10**6), 10**6, n).astype(np.int32),
        )
        tiles, scales = packed_ints(self.q, self.scales, 8, 0, is_gated)
        _, deq_scale = packed_ints(self.q, self.static.deq_scale[:, None], 8, 0, is_gated)
        numbers = self.static.quant_bias[:, None].astype(np.float32)  # exact: they are small
        _, bias = packed_ints(self.q, numbers, 8, 0, is_gated)
        with np.errstate(invalid="ignore"):
            quant_bias = np.ascontiguousarray(bias[:, 0].astype(np.int32))
        numbers = np.float32([self.static.input_scale, self.static.input_offset])
        given = (deq_scale, quant_bias, numbers)
        self.operands = {
            "token": (tiles, scales),
            "static": (tiles, *given),
            "mixed": (tiles, scales, *given),
        }[form]

    def rows(self, is_prompt: np.ndarray) -> tuple[np.ndarray, ...]:
        """The operand that says which rows are a prompt's, where there is one."""
        return (is_prompt,) if self.form == "mixed" else ()

    def reference(
        self, x: np.ndarray, m: int, is_prompt: np.ndarray, bias: np.ndarray | None = None
    ) -> np.ndarray:
        if self.form == "token":
            return reference.token_linear(x, self.q, self.scales, m, bias)
        if self.form == "static":
            return reference.static_linear(x, self.q, self.static, m, bias)
        return reference.mixed_linear(x, self.q, self.scales, self.static, is_prompt, m, bias)


def some_rows(rng: np.random.Generator, m: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations with outliers, some beyond what the given scale reaches; and kinds of rows."""
    x = rng.standard_normal((m, k)).astype(np.float32)
    x[:, rng.integers(0, k, 3)] *= 20
    return x, rng.integers(0, 2, m).astype(np.int32)


@each_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_bit_is_the_references(
    isa: str, rng: np.random.Generator, form: str, shape: tuple[int, int]
) -> None:
    k, n = shape
    layer = Layer(rng, form, n, k)
    bias = rng.standard_normal(n).astype(np.float32)
    x, is_prompt = some_rows(rng, ROW_COUNTS[-1] + 1, k)
    for m in ROW_COUNTS:
        for biases in ((), (bias,)):
            inputs = (x, *layer.operands, *layer.rows(is_prompt), count(m), *biases)
            y = call(f"glm_linear_w8a8_{form}", *inputs, out=output(len(x), n))
            expected = layer.reference(x, m, is_prompt, *biases)
            np.testing.assert_array_equal(y[:m], expected[:m])
            assert (y[m:] == UNTOUCHED).all(), "rows that are not real were written"


@each_form
@pytest.mark.parametrize("shape", [(65, 17), (1100, 33)], ids=str)
def test_norm_linear_equals_reference(
    isa: str, rng: np.random.Generator, form: str, shape: tuple[int, int]
) -> None:
    k, n = shape
    layer = Layer(rng, form, n, k)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    x, is_prompt = some_rows(rng, 18, k)
    for m in (1, 2, 5, 17):
        for biases in ((), (bias,)):
            rows = (*layer.rows(is_prompt), count(m), *biases)
            y = call(
                f"glm_norm_linear_w8a8_{form}",
                *(x, norm, scalar(EPS), *layer.operands, *rows),
                out=output(len(x), n),
            )
            normed = reference.rms_norm(x, norm, EPS, m)
            expected = layer.reference(normed, m, is_prompt, *biases)
            assert relative_error(y[:m], expected[:m]) < NORM_TOLERANCE


@each_form
@pytest.mark.parametrize("shape", [(8, 5), (130, 16), (1056, 90)], ids=str)
def test_gated_linear_equals_reference(
    isa: str, rng: np.random.Generator, form: str, shape: tuple[int, int]
) -> None:
    k, ffn = shape
    layer = Layer(rng, form, 2 * ffn, k, is_gated=True)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x, is_prompt = some_rows(rng, 18, k)
    for m in (0, 1, 2, 5, 17):
        rows = (*layer.rows(is_prompt), count(m))
        y = call(
            f"glm_norm_gated_linear_w8a8_{form}",
            *(x, norm, scalar(EPS), *layer.operands, *rows),
            out=output(len(x), ffn),
        )
        both = layer.reference(reference.rms_norm(x, norm, EPS, m), m, is_prompt)
        if m:
            expected = reference._gate(both)[:m]
            assert relative_error(y[:m], expected) < 3 * NORM_TOLERANCE
        assert (y[m:] == UNTOUCHED).all()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int4_with_a_scale_for_each_token(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], group: int
) -> None:
    k, n = shape
    q, scales = some_ints(rng, n, k, 4, group)
    arrays = packed_ints(q, scales, 4, group)
    bias = rng.standard_normal(n).astype(np.float32)
    x, _ = some_rows(rng, ROW_COUNTS[-1] + 1, k)
    expected = reference.token_linear(x, q, scales, len(x), bias, group)
    for m in ROW_COUNTS:
        y = call("glm_linear_w4a8_token", x, *arrays, count(m), bias, out=output(len(x), n))
        if m:
            assert relative_error(y[:m], expected[:m]) < TOLERANCES["kernel_float32"]
        assert (y[m:] == UNTOUCHED).all()


@pytest.mark.parametrize("form", ["w8a8_token", "w8a8_mixed", "w4a8_token"])
@pytest.mark.parametrize("m", [1, 5, 33])
def test_a_part_of_rows_has_the_scales_of_the_whole_ones(
    isa: str, rng: np.random.Generator, form: str, m: int
) -> None:
    # The largest number of a row stands in a column of another rank: here one of weights of zero.
    k, n, group = 260, 33, 64
    x, is_prompt = some_rows(rng, m, k)
    maxima = (np.abs(x).max(axis=1) * rng.uniform(1, 3, m)).astype(np.float32)[:, None]
    whole, part = x.copy(), x.copy()
    whole[:, :1], part[:, :1] = maxima, 0
    if form == "w4a8_token":
        q, scales = some_ints(rng, n, k, 4, group)
        q[:, 0] = 0
        operands, rows = packed_ints(q, scales, 4, group), ()
        expected = reference.token_linear(whole, q, scales, m, None, group)
    else:
        layer = Layer(rng, form.removeprefix("w8a8_"), n, k, zero_column=0)
        operands, rows = layer.operands, layer.rows(is_prompt)
        expected = layer.reference(whole, m, is_prompt)
    inputs = (part, maxima, *operands, *rows, count(m))
    y = call(f"glm_linear_{form}_shared", *inputs, out=output(m, n))
    if form == "w4a8_token":
        assert relative_error(y, expected) < TOLERANCES["kernel_float32"]
    else:
        np.testing.assert_array_equal(y, expected)


def test_int4_behind_a_norm_and_gated(isa: str, rng: np.random.Generator) -> None:
    k, ffn, m = 1056, 90, 17
    q, scales = some_ints(rng, 2 * ffn, k, 4, 32)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x, _ = some_rows(rng, m, k)
    expected = reference.token_linear(reference.rms_norm(x, norm, EPS, m), q, scales, m, None, 32)
    for name, is_gated in (("norm_linear", False), ("norm_gated_linear", True)):
        inputs = (x, norm, scalar(EPS), *packed_ints(q, scales, 4, 32, is_gated), count(m))
        width = ffn if is_gated else 2 * ffn
        y = call(f"glm_{name}_w4a8_token", *inputs, out=output(m, width))
        wanted = reference._gate(expected) if is_gated else expected
        assert relative_error(y, wanted) < 3 * NORM_TOLERANCE


@each_form
def test_a_row_does_not_depend_on_the_rows_beside_it(
    isa: str, rng: np.random.Generator, form: str
) -> None:
    k, n = 4160, 160
    layer = Layer(rng, form, n, k)
    gated = Layer(rng, form, n, k, is_gated=True)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x, is_prompt = some_rows(rng, 65, k)

    def run(rows: slice) -> np.ndarray:
        part = np.ascontiguousarray(x[rows])
        m = len(part)
        behind = (*layer.rows(is_prompt[rows].copy()), count(m))
        plain = (part, *layer.operands, *behind)
        normed = (part, norm, scalar(EPS), *gated.operands, *behind)
        return np.hstack(
            [
                call(f"glm_linear_w8a8_{form}", *plain, out=output(m, n)),
                call(f"glm_norm_gated_linear_w8a8_{form}", *normed, out=output(m, n // 2)),
            ]
        )

    together = run(slice(0, 65))
    for begin, end in [(0, 1), (64, 65), (3, 5), (10, 17), (16, 33), (1, 9), (0, 64)]:
        np.testing.assert_array_equal(run(slice(begin, end)), together[begin:end])


def test_int4_rows_do_not_depend_on_the_rows_beside_them(
    isa: str, rng: np.random.Generator
) -> None:
    k, n = 1088, 160
    arrays = packed_ints(*some_ints(rng, n, k, 4, 64), 4, 64)
    x, _ = some_rows(rng, 65, k)

    def run(rows: np.ndarray) -> np.ndarray:
        m = len(rows)
        return call("glm_linear_w4a8_token", rows, *arrays, count(m), out=output(m, n))

    together = run(x)
    for begin, end in [(0, 1), (64, 65), (3, 5), (10, 17), (16, 33)]:
        np.testing.assert_array_equal(run(x[begin:end]), together[begin:end])


@each_form
def test_threads_and_instruction_sets_give_the_same_bits(
    rng: np.random.Generator, form: str, set_num_threads: Callable[[int], None]
) -> None:
    k, n = 1100, 22 * 16
    layer = Layer(rng, form, n, k, is_gated=True)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    before = library.isa()
    for m in (1, 7, 40):
        x, is_prompt = some_rows(rng, m, k)
        inputs = (x, norm, scalar(EPS), *layer.operands, *layer.rows(is_prompt), count(m))
        found = []
        for isa in library.available_isas():
            library.select_isa(isa)
            for num_threads in (1, 3, 16) if isa != "portable" else ():
                set_num_threads(num_threads)
                out = output(m, n // 2)
                found.append(call(f"glm_norm_gated_linear_w8a8_{form}", *inputs, out=out).copy())
                np.testing.assert_array_equal(found[-1], found[0])
    library.select_isa(before)


@each_form
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [2, 20])
def test_what_is_no_number_makes_its_row_none(
    isa: str, rng: np.random.Generator, form: str, value: float, m: int
) -> None:
    layer = Layer(rng, form, 16, 256)
    for kind in (0, 1):
        x = np.ones((m, 256), np.float32)
        x[0, 5] = value
        is_prompt = np.full(m, kind, np.int32)
        inputs = (x, *layer.operands, *layer.rows(is_prompt), count(m))
        y = call(f"glm_linear_w8a8_{form}", *inputs, out=output(m, 16))
        assert np.isnan(y[0]).all()
        np.testing.assert_array_equal(y[1:], layer.reference(x, m, is_prompt)[1:])


@each_form
def test_extreme_values_and_rows_of_zeros(isa: str, form: str, rng: np.random.Generator) -> None:
    layer = Layer(rng, form, 17, 13696)
    layer.q[:3] = np.int32([[-128], [127], [0]])
    layer.operands = (packed_ints(layer.q, layer.scales, 8, 0)[0], *layer.operands[1:])
    x = np.repeat(np.float32([[-1e30], [1e30], [0], [1e-40]]), 13696, axis=1)
    for kind in (0, 1):
        is_prompt = np.full(4, kind, np.int32)
        inputs = (x, *layer.operands, *layer.rows(is_prompt), count(4))
        y = call(f"glm_linear_w8a8_{form}", *inputs, out=output(4, 17))
        np.testing.assert_array_equal(y, layer.reference(x, 4, is_prompt))


@pytest.mark.parametrize("m", [1, 3, 9, 20])
def test_without_columns_the_bias_is_left(isa: str, m: int) -> None:
    quant_bias = np.arange(16, dtype=np.int32)[None]
    tiles, scales = np.zeros((1, 0, 16, 64), np.uint8), np.full((1, 1, 16), 0.5, np.float32)
    call(  # leaves sums behind, which are not to be taken for these
        "glm_linear_w8a8_token",
        np.ones((m, 64), np.float32),
        *packed_ints(np.ones((16, 64), np.int32), np.ones((16, 1), np.float32), 8, 0),
        count(m),
        out=output(m, 16),
    )
    x, numbers = np.zeros((m, 0), np.float32), np.float32([1, 5])
    call(
        "glm_linear_w8a8_static",
        x,
        tiles,
        scales,
        quant_bias,
        numbers,
        count(m),
        out=(y := output(m, 16)),
    )
    np.testing.assert_array_equal(y, np.repeat(quant_bias * np.float32(0.5), m, axis=0))


def test_sums_leave_32_bits_from_the_other_end(isa: str) -> None:
    # What a card's 32-bit sums do where a bias is that large, too.
    q, x = np.full((16, 64), 127, np.int32), np.full((3, 64), 127, np.float32)
    tiles, deq_scale = packed_ints(q, np.ones((16, 1), np.float32), 8, 0)
    quant_bias = np.full((1, 16), 2**31 - 1, np.int32)
    operands = (tiles, deq_scale, quant_bias, np.float32([1, 0]), count(3))
    y = call("glm_linear_w8a8_static", x, *operands, out=output(3, 16))
    expected = np.float32(2**31 - 1 + 64 * 127 * 127 - 2**32)
    np.testing.assert_array_equal(y, np.full((3, 16), expected))


def test_wrong_shapes_are_refused(
    rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    layer = Layer(rng, "mixed", 20, 100)
    x, is_prompt = some_rows(rng, 3, 100)
    tiles, scales, deq_scale, quant_bias, numbers = layer.operands

    def refused(words: str, *inputs: np.ndarray, name: str = "mixed") -> None:
        with pytest.raises(KernelRefusedError):
            call(f"glm_linear_w8a8_{name}", *inputs, out=output(3, 20))
        assert words in capfd.readouterr().err

    behind = (is_prompt, count(3))
    refused("deq_scale has size 1", x, tiles, scales, deq_scale[:1], quant_bias, numbers, *behind)
    refused("quant_bias has size 1", x, tiles, scales, deq_scale, quant_bias[:1], numbers, *behind)
    refused("input has size 1", x, tiles, scales, deq_scale, quant_bias, numbers[:1], *behind)
    refused("is_prompt has size 2", x, *layer.operands, is_prompt[:2], count(3))
    refused("parameters", x, *layer.operands, count(3))
    wide = np.zeros((1, 65537), np.float32)
    many = np.zeros((2, 1025, 16, 64), np.uint8)
    with pytest.raises(KernelRefusedError):
        call("glm_linear_w8a8_token", wide, many, scales, count(1), out=output(1, 20))
    assert "at most 65536" in capfd.readouterr().err
