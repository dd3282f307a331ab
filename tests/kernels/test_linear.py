"""Linear layers against the NumPy reference, over awkward shapes."""

from collections.abc import Callable

import numpy as np
import pytest
from aot_call import KernelRefusedError, call

from tests.conftest import TOLERANCES, relative_error
from tests.kernels import reference
from tests.kernels.kernel_calls import (
    PAIRS,
    SUFFIX,
    UNTOUCHED,
    count,
    loaded,
    output,
    packed,
    scalar,
    stored,
)

EPS = 1e-5
ROW_COUNTS = [*range(1, 10), 15, 16, 17, 33, 64, 65]
# (K, N): less than a tile, whole tiles, one over, tile rows of several groups, several blocks of K
# (2048) and one over
SHAPES = [(8, 5), (32, 16), (33, 17), (100, 50), (40, 300), (1056, 33), (2048, 16), (2080, 40)]


def _weight(rng: np.random.Generator, n: int, k: int, dtype: str) -> np.ndarray:
    values = rng.standard_normal((n, k)).astype(np.float32) / np.float32(np.sqrt(k))
    return loaded(stored(values, dtype))


def _tolerance(compute: str, has_norm: bool) -> float:
    # The reference normalises in float64; where float32 lands on the other side of a rounding
    # boundary, that activation differs by one unit of the compute type.
    if has_norm and compute == "bfloat16":
        return 2e-4
    if has_norm and compute == "float16":
        return 3e-5
    return TOLERANCES["kernel_float32"]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_equals_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], pair: tuple[str, str]
) -> None:
    (k, n), (dtype, compute) = shape, pair
    weight = _weight(rng, n, k, dtype)
    tiles = packed(weight, dtype)
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((ROW_COUNTS[-1] + 1, k)).astype(np.float32)
    for m in ROW_COUNTS:
        symbol = f"glm_linear_{SUFFIX[compute]}"
        y = call(symbol, x, tiles, count(m), bias, out=output(len(x), n))
        expected = reference.linear(x, weight, m, bias, compute)
        assert relative_error(y[:m], expected[:m]) < TOLERANCES["kernel_float32"], m
        assert (y[m:] == UNTOUCHED).all(), "rows that are not real were written"


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("shape", [(8, 5), (33, 17), (1056, 33)], ids=str)
def test_a_bias_of_the_norm_is_added_before_products(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], pair: tuple[str, str]
) -> None:
    (k, n), (dtype, compute) = shape, pair
    weight = _weight(rng, 2 * n, k, dtype)
    norm = np.stack([rng.uniform(0.5, 1.5, k), rng.normal(size=k)]).astype(np.float32)
    x = 30 * rng.standard_normal((18, k)).astype(np.float32)
    plain, gated = packed(weight, dtype), packed(weight, dtype, is_gated=True)
    tolerance = _tolerance(compute, has_norm=True)
    for m in (1, 2, 17):
        head, suffix = (x, norm, scalar(EPS)), SUFFIX[compute]
        y = call(f"glm_norm_linear_{suffix}", *head, plain, count(m), out=output(len(x), 2 * n))
        expected = reference.norm_linear(x, norm, EPS, weight, m, None, compute)
        assert relative_error(y[:m], expected[:m]) < tolerance, m
        y = call(f"glm_norm_gated_linear_{suffix}", *head, gated, count(m), out=output(len(x), n))
        expected = reference.norm_gated_linear(x, norm, EPS, weight, m, compute)
        assert relative_error(y[:m], expected[:m]) < 3 * tolerance, m


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("shape", [(33, 17), (1056, 33)], ids=str)
def test_norm_linear_equals_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], pair: tuple[str, str]
) -> None:
    (k, n), (dtype, compute) = shape, pair
    weight = _weight(rng, n, k, dtype)
    tiles = packed(weight, dtype)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    x = 30 * rng.standard_normal((33, k)).astype(np.float32)
    symbol = f"glm_norm_linear_{SUFFIX[compute]}"
    for m in (1, 2, 17, 33):
        for biases in ((), (bias,)):
            y = call(symbol, x, norm, scalar(EPS), tiles, count(m), *biases, out=output(len(x), n))
            expected = reference.norm_linear(
                x, norm, EPS, weight, m, *(biases or (None,)), compute_dtype=compute
            )
            assert relative_error(y[:m], expected[:m]) < _tolerance(compute, True), m


@pytest.mark.parametrize("shape", [(33, 17), (1056, 33), (40, 300)], ids=str)
def test_last_outputs_have_split_activations(
    isa: str, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    k, n = shape
    weight = _weight(rng, n, k, "bfloat16")
    tiles = packed(weight, "bfloat16")
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    x = 30 * rng.standard_normal((33, k)).astype(np.float32)
    head, symbol = (x, norm, scalar(EPS), tiles), "glm_norm_linear_bf16x2"
    for num_split in (0, 1, n // 3, n):
        together = reference.norm_linear(x, norm, EPS, weight, 33, bias, "bfloat16", num_split)
        first = n if num_split == 0 else (n - num_split) // 16 * 16
        # Sixteen digits: what plain bfloat16 would give is a hundred times as far away.
        parts = [
            (slice(0, first), _tolerance("bfloat16", True)),
            (slice(first, n), TOLERANCES["kernel_float32"]),
        ]
        first_rows = []
        for m in (1, 2, 17, 33):
            y = call(symbol, *head, count(m), count(num_split), bias, out=output(len(x), n))
            for part, tolerance in parts:
                if part.start < part.stop:
                    assert relative_error(y[:m, part], together[:m, part]) < tolerance, (m, part)
            assert (y[m:] == UNTOUCHED).all()
            first_rows.append(y[0])
        for row in first_rows:
            np.testing.assert_array_equal(row, first_rows[0])


def test_more_split_outputs_than_there_are_outputs_are_refused(isa: str) -> None:
    x, norm = np.ones((1, 32), np.float32), np.ones(32, np.float32)
    tiles = packed(np.ones((16, 32), np.float32), "bfloat16")
    with pytest.raises(KernelRefusedError):
        call(
            "glm_norm_linear_bf16x2",
            x,
            norm,
            scalar(EPS),
            tiles,
            count(1),
            count(17),
            out=output(1, 16),
        )


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("shape", [(8, 5), (33, 16), (64, 17), (1056, 48)], ids=str)
def test_gated_linear_equals_reference(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], pair: tuple[str, str]
) -> None:
    (k, ffn), (dtype, compute) = shape, pair
    weight = _weight(rng, 2 * ffn, k, dtype)
    tiles = packed(weight, dtype, is_gated=True)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x = rng.standard_normal((34, k)).astype(np.float32)
    symbol = f"glm_norm_gated_linear_{SUFFIX[compute]}"
    for m in (1, 2, 16, 17, 33):
        y = call(symbol, x, norm, scalar(EPS), tiles, count(m), out=output(len(x), ffn))
        expected = reference.norm_gated_linear(x, norm, EPS, weight, m, compute)
        # Products of two sums: the boundary cases of _tolerance count twice.
        assert relative_error(y[:m], expected[:m]) < 3 * _tolerance(compute, True), m
        assert (y[m:] == UNTOUCHED).all()


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_row_does_not_depend_on_the_rows_beside_it(
    isa: str, rng: np.random.Generator, pair: tuple[str, str]
) -> None:
    dtype, compute = pair
    k, n = 2100, 200
    tiles = packed(_weight(rng, n, k, dtype), dtype)
    gated = packed(_weight(rng, n, k, dtype), dtype, is_gated=True)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x = rng.standard_normal((65, k)).astype(np.float32)

    def run(rows: np.ndarray) -> np.ndarray:
        m, suffix = len(rows), SUFFIX[compute]
        head = (rows, norm, scalar(EPS))
        return np.hstack(
            [
                call(f"glm_linear_{suffix}", rows, tiles, count(m), out=output(m, n)),
                call(f"glm_norm_linear_{suffix}", *head, tiles, count(m), out=output(m, n)),
                call(
                    f"glm_norm_gated_linear_{suffix}", *head, gated, count(m), out=output(m, n // 2)
                ),
            ]
        )

    together = run(x)
    for begin, end in [(0, 1), (64, 65), (3, 5), (10, 17), (16, 33), (0, 64)]:
        np.testing.assert_array_equal(run(x[begin:end]), together[begin:end])


@pytest.mark.parametrize("form", ["plain", "gated", "split"])
@pytest.mark.parametrize("m", [1, 7, 40])
def test_a_sum_does_not_depend_on_the_number_of_threads(
    isa: str,
    rng: np.random.Generator,
    m: int,
    form: str,
    set_num_threads: Callable[[int], None],
) -> None:
    k, n = 2100, 22 * 16  # 22 tile rows: threads get uneven numbers, groups of 1 to 8 are left over
    is_gated = form == "gated"
    tiles = packed(_weight(rng, n, k, "bfloat16"), "bfloat16", is_gated)
    norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
    x = rng.standard_normal((m, k)).astype(np.float32)
    symbol = "glm_norm_gated_linear_bf16" if is_gated else "glm_norm_linear_bf16"
    inputs = [x, norm, scalar(EPS), tiles, count(m)]
    if form == "split":
        symbol += "x2"
        inputs.append(count(5 * 16))
    found = []
    for num_threads in (1, 2, 3, 5, 16, 40):
        set_num_threads(num_threads)
        out = output(m, n // 2 if is_gated else n)
        found.append(call(symbol, *inputs, out=out).copy())
        np.testing.assert_array_equal(found[-1], found[0])


@pytest.mark.parametrize(("dtype", "compute"), [("float16", "float16"), ("bfloat16", "bfloat16")])
def test_large_activations_stay_finite(
    isa: str, rng: np.random.Generator, dtype: str, compute: str
) -> None:
    k, n = 64, 16
    weight = _weight(rng, n, k, dtype)
    x = rng.choice(np.float32([-3e5, -65519, -65504, 65504, 65520, 1e30, 1.0]), (17, k))
    y = call(
        f"glm_linear_{SUFFIX[compute]}", x, packed(weight, dtype), count(17), out=output(17, n)
    )
    expected = reference.linear(x, weight, 17, None, compute)
    assert np.isfinite(y).all()
    assert relative_error(y, expected) < TOLERANCES["kernel_float32"]


def test_gate_of_large_magnitude_is_zero_or_itself(isa: str) -> None:
    # One input, gates -200 and 200: silu must give 0 and 200, not NaN.
    weight = np.float32([[-200.0], [200.0], [1.0], [1.0]])
    y = call(
        "glm_norm_gated_linear_f32",
        np.float32([[1.0]]),
        np.float32([1.0]),
        scalar(0.0),
        packed(weight, "float32", is_gated=True),
        count(1),
        out=output(1, 2),
    )
    np.testing.assert_allclose(y, [[0.0, 200.0]], rtol=1e-6, atol=1e-30)


def test_nan_is_not_swallowed(isa: str) -> None:
    weight = np.ones((16, 32), np.float32)
    x = np.ones((2, 32), np.float32)
    x[0, 5] = np.nan
    for dtype, compute in PAIRS:
        tiles = packed(weight, dtype)
        y = call(f"glm_linear_{SUFFIX[compute]}", x, tiles, count(2), out=output(2, 16))
        assert np.isnan(y[0]).all()
        assert (y[1] == 32).all()


@pytest.mark.parametrize(("dtype", "compute"), [("float32", "bfloat16"), ("bfloat16", "float16")])
def test_other_type_pairs_are_refused(isa: str, dtype: str, compute: str) -> None:
    tiles = packed(np.ones((16, 32), np.float32), dtype)
    x = np.ones((1, 32), np.float32)
    with pytest.raises(KernelRefusedError):
        call(f"glm_linear_{SUFFIX[compute]}", x, tiles, count(1), out=output(1, 16))
