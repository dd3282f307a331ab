"""Rounding of float weights to packed integers against the NumPy reference."""

import numpy as np
import pytest

from mindformers_glm.backends.cpu import tile_packing
from mindformers_glm.backends.cpu.allocation import allocate
from tests.kernels import reference
from tests.kernels.kernel_calls import loaded, stored, unpacked_ints

FORMATS = [(8, 0), (4, 32), (4, 64), (4, 128)]


def allocated(
    rows: int, columns: int, bits: int, group: int, is_gated: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    tiles_shape, scales_shape = tile_packing.quantized_shapes(rows, columns, bits, group, is_gated)
    return allocate(tiles_shape, "uint8"), allocate(scales_shape, "float32")


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize("src_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 1), (16, 128), (17, 65), (50, 300), (33, 1000)], ids=str)
def test_integers_and_scales_equal_reference(
    isa: str,
    rng: np.random.Generator,
    shape: tuple[int, int],
    src_dtype: str,
    bits: int,
    group: int,
) -> None:
    n, k = shape
    values = stored(rng.standard_normal(shape) * np.exp2(rng.uniform(-9, 9, (n, 1))), src_dtype)
    tiles, scales = allocated(n, k, bits, group)
    first = n // 3
    tile_packing.quantize_rows(tiles, scales, values[:first], src_dtype, bits, group, 0)
    tile_packing.quantize_rows(tiles, scales, values[first:], src_dtype, bits, group, first)
    q, q_scales = unpacked_ints(tiles, scales, n, k, bits)
    expected, expected_scales = reference.quantize_weight(loaded(values), bits, group)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(q_scales[:, : expected_scales.shape[1]], expected_scales)


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_halves_round_to_even_and_zeros_stay(isa: str, bits: int, group: int) -> None:
    least, most = {8: (-127, 127), 4: (-8, 7)}[bits]
    row = np.float32([least, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.5, 0, most])
    weight = np.stack([row, -row, 0 * row, 1e-10 * row])
    tiles, scales = allocated(4, 10, bits, group)
    tile_packing.quantize_rows(tiles, scales, weight, "float32", bits, group, 0)
    q, q_scales = unpacked_ints(tiles, scales, 4, 10, bits)
    np.testing.assert_array_equal(q[0], [least, 0, 2, 2, 0, -2, -2, 4, 0, most])
    np.testing.assert_array_equal(q[1] * q_scales[1, 0], -q[0])
    assert (q[2:] == 0).all()
    np.testing.assert_array_equal(np.abs(q_scales[:, 0]), np.float32([1, 1, 2**-23, 2**-23]))


def test_int4_uses_all_sixteen_integers_for_either_sign(isa: str) -> None:
    row = np.float32([-8, 7.9, 0.4])
    tiles, scales = allocated(2, 3, 4, 32)
    tile_packing.quantize_rows(tiles, scales, np.stack([row, -row]), "float32", 4, 32, 0)
    q, q_scales = unpacked_ints(tiles, scales, 2, 3, 4)
    np.testing.assert_array_equal(q, [[-8, 7, 0], [-8, 7, 0]])
    np.testing.assert_array_equal(q_scales[:, 0], [1, -1])


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize("half", [1, 16, 17, 40])
def test_gate_and_up_tiles_alternate(
    rng: np.random.Generator, half: int, bits: int, group: int
) -> None:
    weight = rng.standard_normal((2 * half, 150)).astype(np.float32)
    tiles, scales = allocated(half, 150, bits, group, is_gated=True)
    expected, expected_scales = reference.quantize_weight(weight, bits, group)
    for part in range(2):
        rows = slice(part * half, (part + 1) * half)
        tile_packing.quantize_rows(tiles, scales, weight[rows], "float32", bits, group, 0, part)
    for part in range(2):
        rows = slice(part * half, (part + 1) * half)
        q, q_scales = unpacked_ints(tiles[part::2], scales[part::2], half, 150, bits)
        np.testing.assert_array_equal(q, expected[rows])
        np.testing.assert_array_equal(
            q_scales[:, : expected_scales.shape[1]], expected_scales[rows]
        )


@pytest.mark.parametrize("offset", [1, 7])
def test_source_may_be_unaligned(isa: str, rng: np.random.Generator, offset: int) -> None:
    values = stored(rng.standard_normal((5, 40)), "bfloat16")
    memory = np.zeros(values.nbytes + offset, np.uint8)
    memory[offset:] = values.ravel().view(np.uint8)
    source = np.ndarray(values.shape, values.dtype, buffer=memory[offset:].data)
    tiles, scales = allocated(5, 40, 8, 0)
    tile_packing.quantize_rows(tiles, scales, source, "bfloat16", 8, 0, 0)
    q, _ = unpacked_ints(tiles, scales, 5, 40, 8)
    np.testing.assert_array_equal(q, reference.quantize_weight(loaded(values), 8, 0)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_what_is_no_number_makes_its_scale_one(
    isa: str, bits: int, group: int, value: float
) -> None:
    weight = np.ones((2, 256), np.float32)
    weight[0, 40] = value
    tiles, scales = allocated(2, 256, bits, group)
    tile_packing.quantize_rows(tiles, scales, weight, "float32", bits, group, 0)
    _, q_scales = unpacked_ints(tiles, scales, 2, 256, bits)
    assert not np.isfinite(q_scales[0, 40 // (group or 256)])
    assert np.isfinite(q_scales[1]).all()


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize(
    "kept", [(0, 300), (128, 300), (160, 200), (140, 141), (256, 300)], ids=str
)
def test_a_part_of_the_columns_has_the_scales_of_the_whole_rows(
    isa: str, rng: np.random.Generator, kept: tuple[int, int], bits: int, group: int
) -> None:
    whole = (rng.standard_normal((20, 300)) * np.exp2(rng.uniform(-3, 3, 300))).astype(np.float32)
    expected, expected_scales = reference.quantize_weight(whole, bits, group)
    begin, end = kept
    aligned = group or 128
    first, last = begin // aligned * aligned, min(-(-end // aligned) * aligned, 300)
    part = np.ascontiguousarray(whole[:, first:last])
    tiles, scales = allocated(20, last - first, bits, group)
    maxima = np.abs(whole).max(axis=1) if bits == 8 else None
    kept_columns = range(begin - first, end - first)
    tile_packing.quantize_rows(
        tiles, scales, part, "float32", bits, group, 0, row_maxima=maxima, kept=kept_columns
    )
    q, q_scales = unpacked_ints(tiles, scales, 20, last - first, bits)
    np.testing.assert_array_equal(q[:, kept_columns], expected[:, begin:end])
    assert np.count_nonzero(q) == np.count_nonzero(expected[:, begin:end])
    groups = slice(0, 1) if bits == 8 else slice(first // group, -(-last // group))
    expected_scales = expected_scales[:, groups]
    np.testing.assert_array_equal(q_scales[:, : expected_scales.shape[1]], expected_scales)


def test_wrong_arrays_are_refused(rng: np.random.Generator) -> None:
    source = rng.standard_normal((20, 40)).astype(np.float32)
    tiles, scales = allocated(20, 40, 4, 32)
    with pytest.raises(ValueError, match="do not fit"):
        tile_packing.quantize_rows(tiles, scales, source, "float32", 4, 32, 13)
    with pytest.raises(ValueError, match="do not fit"):
        tile_packing.quantize_rows(tiles, scales, source, "float32", 4, 64, 0)
    with pytest.raises(ValueError, match="do not fit"):
        tile_packing.quantize_rows(tiles, scales, source, "float32", 8, 0, 0)
    with pytest.raises(ValueError, match="5 bits"):
        tile_packing.quantize_rows(tiles, scales, source, "float32", 5, 32, 0)
    with pytest.raises(ValueError, match="contiguous"):
        tile_packing.quantize_rows(tiles, scales, source.T, "float32", 4, 32, 0)
    maxima = np.ones(19, np.float32)
    with pytest.raises(ValueError, match="expected 20 row maxima"):
        tile_packing.quantize_rows(tiles, scales, source, "float32", 4, 32, 0, row_maxima=maxima)
