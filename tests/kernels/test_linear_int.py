"""Linear layers on int8 and int4 weights against the NumPy reference, over awkward shapes."""

from collections.abc import Callable

import numpy as np
import pytest
from aot_call import KernelRefusedError, call

from mindformers_glm.backends.cpu import library, tile_packing
from mindformers_glm.core.quantization_scheme import GROUP_SIZES
from tests.conftest import TOLERANCES, relative_error
from tests.kernels import reference
from tests.kernels.kernel_calls import UNTOUCHED, count, output, packed_ints, scalar, unpacked_ints

EPS = 1e-5
ROW_COUNTS = [0, 1, 2, 3, 5, 6, 7, 8, 9, 13, 16, 17, 33]
# (K, N): less than a group, whole tiles, one over, several blocks of K and one over
SHAPES = [(8, 5), (64, 16), (65, 17), (100, 50), (128, 80), (1024, 16), (1100, 33), (2080, 150)]
# Weight bits and group size.
FORMATS = [(8, 0), (4, 32), (4, 64), (4, 128)]
# The reference normalises in float64: where float32 lands on the other side of a rounding boundary,
# that activation differs by one of its units.
NORM_TOLERANCES = {8: 4e-4, 16: 1e-5}

each_format = pytest.mark.parametrize(
    ("bits", "group"), FORMATS, ids=lambda value: str(value) if value else ""
)
each_activation = pytest.mark.parametrize("activation_bits", [8, 16], ids="a{}".format)


def symbol(form: str, bits: int, activation_bits: int) -> str:
    return f"glm_{form}_w{bits}a{activation_bits}"


def some_ints(
    rng: np.random.Generator, n: int, k: int, bits: int, group: int
) -> tuple[np.ndarray, np.ndarray]:
    """Integers of the whole range, also those that our own rounding does not give, and scales."""
    most = 1 << (bits - 1)
    q = rng.integers(-most, most, (n, k), dtype=np.int32)
    groups = 1 if bits == 8 else -(-k // group)
    return q, rng.uniform(0.5, 1.5, (n, groups)).astype(np.float32) / np.float32(most * np.sqrt(k))


@each_format
@each_activation
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_equals_reference(
    isa: str,
    rng: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    activation_bits: int,
) -> None:
    k, n = shape
    q, scales = some_ints(rng, n, k, bits, group)
    arrays = packed_ints(q, scales, bits, group)
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((ROW_COUNTS[-1] + 1, k)).astype(np.float32)
    expected = reference.quantized_linear(x, q, scales, len(x), bias, activation_bits, group)
    for m in ROW_COUNTS:
        name = symbol("linear", bits, activation_bits)
        y = call(name, x, *arrays, count(m), bias, out=output(len(x), n))
        if m:
            assert relative_error(y[:m], expected[:m]) < TOLERANCES["kernel_float32"], m
        assert (y[m:] == UNTOUCHED).all(), "rows that are not real were written"


@each_format
@each_activation
@pytest.mark.parametrize("shape", [(65, 17), (1100, 33)], ids=str)
def test_norm_linear_equals_reference(
    isa: str,
    rng: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    activation_bits: int,
) -> None:
    k, n = shape
    q, scales = some_ints(rng, n, k, bits, group)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    x = 30 * rng.standard_normal((17, k)).astype(np.float32)
    name = symbol("norm_linear", bits, activation_bits)
    for m in (1, 2, 5, 17):
        for biases in ((), (bias,)):
            inputs = (x, norm, scalar(EPS), *packed_ints(q, scales, bits, group), count(m), *biases)
            y = call(name, *inputs, out=output(len(x), n))
            expected = reference.quantized_norm_linear(
                x, norm, EPS, q, scales, m, *(biases or (None,)), activation_bits, group
            )
            assert relative_error(y[:m], expected[:m]) < NORM_TOLERANCES[activation_bits], m


@each_format
@each_activation
def test_a_bias_of_the_norm_is_added_before_activations_are_rounded(
    isa: str, rng: np.random.Generator, bits: int, group: int, activation_bits: int
) -> None:
    k, n = 300, 33
    q, scales = some_ints(rng, n, k, bits, group)
    norm = np.stack([rng.uniform(0.5, 1.5, k), rng.normal(size=k)]).astype(np.float32)
    x = 30 * rng.standard_normal((17, k)).astype(np.float32)
    name = symbol("norm_linear", bits, activation_bits)
    for m in (1, 5, 17):
        inputs = (x, norm, scalar(EPS), *packed_ints(q, scales, bits, group), count(m))
        y = call(name, *inputs, out=output(len(x), n))
        expected = reference.quantized_norm_linear(
            x, norm, EPS, q, scales, m, None, activation_bits, group
        )
        assert relative_error(y[:m], expected[:m]) < NORM_TOLERANCES[activation_bits], m


@each_format
@each_activation
@pytest.mark.parametrize("shape", [(8, 5), (130, 16), (1056, 90)], ids=str)
def test_gated_linear_equals_reference(
    isa: str,
    rng: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    activation_bits: int,
) -> None:
    k, ffn = shape
    q, scales = some_ints(rng, 2 * ffn, k, bits, group)
    arrays = packed_ints(q, scales, bits, group, is_gated=True)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x = rng.standard_normal((18, k)).astype(np.float32)
    name = symbol("norm_gated_linear", bits, activation_bits)
    for m in (0, 1, 2, 5, 17):
        y = call(name, x, norm, scalar(EPS), *arrays, count(m), out=output(len(x), ffn))
        expected = reference.quantized_norm_gated_linear(
            x, norm, EPS, q, scales, m, activation_bits, group
        )
        if m:
            # Products of two sums: the boundary cases count twice.
            assert relative_error(y[:m], expected[:m]) < 3 * NORM_TOLERANCES[activation_bits], m
        assert (y[m:] == UNTOUCHED).all()


@each_format
@each_activation
def test_a_row_does_not_depend_on_the_rows_beside_it(
    isa: str, rng: np.random.Generator, bits: int, group: int, activation_bits: int
) -> None:
    k, n = 1088, 160
    q, scales = some_ints(rng, n, k, bits, group)
    arrays = packed_ints(q, scales, bits, group)
    gated = packed_ints(q, scales, bits, group, is_gated=True)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x = rng.standard_normal((65, k)).astype(np.float32)

    def run(rows: np.ndarray) -> np.ndarray:
        m = len(rows)
        linear = symbol("linear", bits, activation_bits)
        norm_gated = symbol("norm_gated_linear", bits, activation_bits)
        inputs = (rows, norm, scalar(EPS), *gated, count(m))
        return np.hstack(
            [
                call(linear, rows, *arrays, count(m), out=output(m, n)),
                call(norm_gated, *inputs, out=output(m, n // 2)),
            ]
        )

    together = run(x)
    for begin, end in [(0, 1), (64, 65), (3, 5), (10, 17), (16, 33), (1, 9), (0, 64)]:
        np.testing.assert_array_equal(run(x[begin:end]), together[begin:end])


@each_format
@each_activation
@pytest.mark.parametrize("is_gated", [False, True], ids=["plain", "gated"])
def test_a_sum_does_not_depend_on_the_number_of_threads(
    isa: str,
    rng: np.random.Generator,
    bits: int,
    group: int,
    activation_bits: int,
    is_gated: bool,
    set_num_threads: Callable[[int], None],
) -> None:
    k, n = 1100, 22 * 16
    q, scales = some_ints(rng, n, k, bits, group)
    arrays = packed_ints(q, scales, bits, group, is_gated=is_gated)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    name = symbol("norm_gated_linear" if is_gated else "norm_linear", bits, activation_bits)
    for m in (1, 7, 40):
        x = rng.standard_normal((m, k)).astype(np.float32)
        found = []
        for num_threads in (1, 2, 3, 5, 16, 40):
            set_num_threads(num_threads)
            out = output(m, n // 2 if is_gated else n)
            found.append(call(name, x, norm, scalar(EPS), *arrays, count(m), out=out).copy())
            np.testing.assert_array_equal(found[-1], found[0])


@each_format
@each_activation
def test_instruction_sets_agree(
    rng: np.random.Generator, bits: int, group: int, activation_bits: int
) -> None:
    # Integers are exact everywhere. The sums of groups are made of fused multiply-adds, which the
    # portable kernels do not have: they alone may differ, in the last digits.
    k, n, m = 1100, 40, 7
    q, scales = some_ints(rng, n, k, bits, group)
    arrays = packed_ints(q, scales, bits, group)
    x = rng.standard_normal((m, k)).astype(np.float32)
    results = {}
    before = library.isa()
    for isa in library.available_isas():
        library.select_isa(isa)
        name = symbol("linear", bits, activation_bits)
        results[isa] = call(name, x, *arrays, count(m), out=output(m, n))
    library.select_isa(before)
    portable = results.pop("portable")
    for result in results.values():
        np.testing.assert_array_equal(result, next(iter(results.values())))
        assert relative_error(result, portable) < 1e-6


@each_format
@each_activation
def test_extreme_integers_do_not_overflow(
    isa: str, bits: int, group: int, activation_bits: int
) -> None:
    k, most = 512, 1 << (bits - 1)
    q = np.repeat(np.int32([[-most], [most - 1], [0]]), k, axis=1)
    scales = np.ones((3, 1 if bits == 8 else k // group), np.float32)
    x = np.repeat(np.float32([[-1.0], [1.0], [1e30], [-1e-25]]), k, axis=1)
    arrays = packed_ints(q, scales, bits, group)
    y = call(symbol("linear", bits, activation_bits), x, *arrays, count(4), out=output(4, 3))
    exact = x[:, :1].astype(np.float64) * k * np.float64([-most, most - 1, 0])
    np.testing.assert_allclose(y, exact, rtol=1e-6)


@each_format
@each_activation
def test_groups_and_rows_of_zeros_count_as_zeros(
    isa: str, rng: np.random.Generator, bits: int, group: int, activation_bits: int
) -> None:
    k, n = 384, 17
    q, scales = some_ints(rng, n, k, bits, group)
    q[3] = 0
    x = rng.standard_normal((3, k)).astype(np.float32)
    x[0] = 0
    x[1, 128:256] = 1e-40  # so small that its scale has no inverse
    arrays = packed_ints(q, scales, bits, group)
    y = call(symbol("linear", bits, activation_bits), x, *arrays, count(3), out=output(3, n))
    assert (y[0] == 0).all()
    assert (y[:, 3] == 0).all()
    x[1, 128:256] = 0
    expected = reference.quantized_linear(x, q, scales, 3, None, activation_bits, group)
    assert relative_error(y, expected) < TOLERANCES["kernel_float32"]


@each_format
@each_activation
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_swallowed(
    isa: str, bits: int, group: int, activation_bits: int, value: float
) -> None:
    q, scales = np.ones((16, 256), np.int32), np.ones((16, 256 // (group or 256)), np.float32)
    x = np.ones((2, 256), np.float32)
    x[0, 5] = value
    arrays = packed_ints(q, scales, bits, group)
    y = call(symbol("linear", bits, activation_bits), x, *arrays, count(2), out=output(2, 16))
    assert not np.isfinite(y[0]).any()
    np.testing.assert_allclose(y[1], 256, rtol=1e-6)


@each_format
def test_float_weights_survive_to_their_precision(
    isa: str, rng: np.random.Generator, bits: int, group: int
) -> None:
    # Against plain float products: what a16 loses is far less than what rounding the weights does.
    k, n = 640, 48
    weight = rng.standard_normal((n, k)).astype(np.float32)
    tiles, scales = (
        np.zeros(shape, dtype)
        for shape, dtype in zip(
            tile_packing.quantized_shapes(n, k, bits, group), (np.uint8, np.float32), strict=True
        )
    )
    tile_packing.quantize_rows(tiles, scales, weight, "float32", bits, group, 0)
    x = rng.standard_normal((4, k)).astype(np.float32)
    exact = reference.linear(x, weight, 4)
    limits = {(8, 8): 2e-2, (8, 16): 1.2e-2, (4, 8): 0.2, (4, 16): 0.2}
    for activation_bits in (8, 16):
        name = symbol("linear", bits, activation_bits)
        y = call(name, x, tiles, scales, count(4), out=output(4, n))
        assert relative_error(y, exact) < limits[bits, activation_bits]
        q, q_scales = unpacked_ints(tiles, scales, n, k, bits)
        rounded = (q * np.repeat(q_scales, group or k, axis=1)[:, :k]).astype(np.float32)
        same_weight = relative_error(y, reference.linear(x, rounded, 4))
        assert same_weight < {8: 1e-2, 16: 4e-5}[activation_bits]


def test_wrong_shapes_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    q, x = np.ones((20, 100), np.int32), np.ones((2, 100), np.float32)
    tiles, scales = packed_ints(q, np.ones((20, 4), np.float32), 4, 32)

    def refused(words: str, *inputs: np.ndarray, name: str = "glm_linear_w4a8") -> None:
        with pytest.raises(KernelRefusedError):
            call(name, *inputs, out=output(2, 20))
        assert words in capfd.readouterr().err

    call("glm_linear_w4a8", x, tiles, scales, count(2), out=output(2, 20))
    refused("weight has size 1 on axis 1", x, tiles, scales, count(2), name="glm_linear_w8a8")
    refused("groups of 32, 64 or 128", x, tiles, scales[:, :3].copy(), count(2))
    refused("scales has size 1", x, tiles, scales[:1], count(2))
    refused("unexpected type", x, tiles.astype(np.float32), scales, count(2))
    refused("parameters", x, tiles, scales)
    refused("weight has size 2", x, x[0], scalar(EPS), tiles, scales, count(2),
            name="glm_norm_gated_linear_w4a16")  # fmt: skip


def test_every_group_size_that_settings_offer_is_tested() -> None:
    assert {group for bits, group in FORMATS if bits == 4} == set(GROUP_SIZES)
