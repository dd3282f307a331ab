"""Integers that are there already lie as those that the operators' own quantizer makes."""

from dataclasses import replace

import numpy as np
import pytest

from mindformers_glm.backends.cpu import tile_packing
from mindformers_glm.backends.cpu.packed_integers import PackedIntegers
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import QuantizedRows
from tests.kernels import reference
from tests.kernels.kernel_calls import packed_ints, packed_zeros, unpacked_ints

# Rows and columns: whole tiles, parts of tiles, a single row, less than a group.
SHAPES = [(32, 256), (35, 200), (1, 72), (17, 128)]


def _form(weight: np.ndarray, bits: int, group_size: int) -> QuantizedRows:
    codes, scales = reference.quantize_weight(weight, bits, group_size)
    groups = np.arange(weight.shape[1]) // (group_size or weight.shape[1])
    return QuantizedRows(codes.astype(np.int8), scales.astype(np.float32), None, groups)


def _empty(
    rows: int, columns: int, bits: int, group_size: int, is_gated: bool
) -> tuple[np.ndarray, np.ndarray]:
    shapes = tile_packing.quantized_shapes(rows, columns, bits, group_size, is_gated)
    return np.zeros(shapes[0], np.uint8), np.zeros(shapes[1], np.float32)


@pytest.mark.parametrize(("bits", "group_size"), [(8, 0), (4, 32), (4, 64), (4, 128)])
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_and_scales_are_the_quantizers(
    shape: tuple[int, int], is_gated: bool, bits: int, group_size: int
) -> None:
    rng = np.random.default_rng(0)
    (rows, columns), stride = shape, 2 if is_gated else 1
    expected, expected_scales = _empty(rows + 5, columns, bits, group_size, is_gated)
    tiles, scales = _empty(rows + 5, columns, bits, group_size, is_gated)
    packed = PackedIntegers(tiles, scales, bits, group_size, stride)
    for half in range(stride):
        for offset, count in ((0, 5), (5, rows)):  # the second part begins inside a tile
            weight = rng.normal(size=(count, columns)).astype(np.float32)
            of_half = half if is_gated else None
            tile_packing.quantize_rows(
                expected, expected_scales, weight, "float32", bits, group_size, offset, of_half
            )
            packed.put(_form(weight, bits, group_size), offset, half, None, "weight")
    np.testing.assert_array_equal(tiles, expected)
    real = -(-columns // group_size) if group_size else 1
    np.testing.assert_array_equal(scales[:, :real], expected_scales[:, :real])
    assert not scales[:, real:].any()


@pytest.mark.parametrize(("bits", "group_size"), [(8, 0), (4, 32)])
def test_columns_of_other_ranks_become_zeros(bits: int, group_size: int) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
    expected, expected_scales = _empty(16, 256, bits, group_size, False)
    tiles, scales = _empty(16, 256, bits, group_size, False)
    kept = range(24, 100)
    tile_packing.quantize_rows(
        expected, expected_scales, weight, "float32", bits, group_size, 0, kept=kept
    )
    form = _form(weight, bits, group_size)
    PackedIntegers(tiles, scales, bits, group_size, 1).put(form, 0, 0, kept, "weight")
    np.testing.assert_array_equal(tiles, expected)
    np.testing.assert_array_equal(scales, expected_scales)


def test_a_scale_of_a_larger_group_stands_in_several() -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (16, 256)).astype(np.int8)
    tiles, scales = _empty(16, 256, 4, 128, False)
    whole_row = np.arange(1, 17, dtype=np.float32)[:, None]
    form = QuantizedRows(codes, whole_row, None, np.zeros(256, np.intp))
    PackedIntegers(tiles, scales, 4, 128, 1).put(form, 0, 0, None, "weight")
    np.testing.assert_array_equal(scales[0], np.tile(whole_row.T, (2, 1)))


def test_zero_points_are_told() -> None:
    tiles, scales = _empty(16, 128, 4, 128, False)
    one = np.ones((16, 1), np.float32)
    form = QuantizedRows(np.zeros((16, 128), np.int8), one, one, np.zeros(128, np.intp))
    with pytest.raises(CheckpointError, match=r"x\.weight has zero points in some rows"):
        PackedIntegers(tiles, scales, 4, 128, 1).put(form, 0, 0, None, "x.weight")


GROUPED = [(8, 0), (8, 32), (8, 128), (4, 32), (4, 128)]


def _stored(rows: int, columns: int, bits: int, group: int) -> QuantizedRows:
    """Random codes, scales and zero points of all values, one of each for `group` columns."""
    rng = np.random.default_rng(0)
    most, groups = 2 ** (bits - 1), -(-columns // group)
    return QuantizedRows(
        rng.integers(-most, most, (rows, columns)).astype(np.int8),
        rng.uniform(0.5, 1, (rows, groups)).astype(np.float32),
        rng.integers(-most, most, (rows, groups)).astype(np.float32),
        np.arange(columns) // group,
    )


def _packed(columns: int, bits: int, group_size: int, stride: int = 1) -> PackedIntegers:
    """Room for 40 rows, of each half where stride is 2."""
    tiles, scales = _empty(40, columns, bits, group_size, stride == 2)
    zeros, order = np.zeros(scales.shape, np.uint8), np.zeros(columns, np.int32)
    return PackedIntegers(tiles, scales, bits, group_size, stride, zeros, order)


def _in_order(packed: PackedIntegers) -> PackedIntegers:
    return replace(packed, order=None)


@pytest.mark.parametrize(("bits", "group_size"), GROUPED)
@pytest.mark.parametrize("is_gated", [False, True])
def test_zero_points_lie_as_scales_do(is_gated: bool, bits: int, group_size: int) -> None:
    columns = 200
    form = _stored(80 if is_gated else 40, columns, bits, group_size or columns)
    assert form.zeros is not None
    packed = _in_order(_packed(columns, bits, group_size, 2 if is_gated else 1))
    for half in range(packed.stride):
        for begin, end in ((0, 5), (5, 40)):
            rows = slice(half * 40 + begin, half * 40 + end)
            part = QuantizedRows(form.codes[rows], form.scales[rows], form.zeros[rows], form.groups)
            packed.put(part, begin, half, None, "weight")
    settings = (bits, group_size, is_gated)
    tiles, scales = packed_ints(form.codes.astype(np.int32), form.scales, *settings)
    zeros = packed_zeros(form.zeros.astype(np.int32), columns, *settings)
    of_rows = np.zeros((len(zeros), 16), bool)  # without those that pad tiles
    of_rows[:] = np.arange(16) < np.repeat([16, 16, 8], packed.stride)[:, None]
    for found, expected in ((packed.scales, scales), (packed.zeros, zeros)):
        assert found is not None
        np.testing.assert_array_equal(
            found.transpose(0, 2, 1)[of_rows], expected.transpose(0, 2, 1)[of_rows]
        )
    found_tiles, expected_tiles = (
        array.reshape(len(array), -1, 16, 4).transpose(0, 2, 1, 3)[of_rows]
        for array in (packed.tiles, tiles)
    )
    np.testing.assert_array_equal(found_tiles, expected_tiles)


@pytest.mark.parametrize(("bits", "group_size"), [(8, 32), (4, 32), (4, 64)])
def test_columns_are_sorted_by_group(bits: int, group_size: int) -> None:
    columns = 256
    form = _stored(40, columns, bits, group_size)
    shuffled = np.random.default_rng(1).permutation(form.groups)
    anywhere = replace(form, groups=shuffled)
    packed = _packed(columns, bits, group_size)
    packed.put(anywhere, 0, 0, None, "weight")
    assert packed.order is not None
    assert sorted(packed.order) == list(range(columns))
    expected = _packed(columns, bits, group_size)
    in_order = replace(form, codes=np.ascontiguousarray(form.codes[:, packed.order]))
    _in_order(expected).put(in_order, 0, 0, None, "weight")
    np.testing.assert_array_equal(shuffled[packed.order], form.groups)
    for name in ("tiles", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(expected, name))


@pytest.mark.parametrize(("bits", "group_size"), [(8, 0), (8, 32), (4, 32), (4, 128)])
def test_columns_of_other_ranks_mean_zero_whatever_the_zero_points(
    bits: int, group_size: int
) -> None:
    kept = range(24, 100)
    form = _stored(40, 256, bits, group_size or 256)
    assert form.zeros is not None
    packed = _in_order(_packed(256, bits, group_size))
    packed.put(form, 0, 0, kept, "weight")
    found, _ = unpacked_ints(packed.tiles, packed.scales, 40, 256, bits)
    meant = found - form.zeros[:, form.groups]
    is_kept = np.isin(np.arange(256), kept)
    assert not meant[:, ~is_kept].any()
    np.testing.assert_array_equal(found[:, is_kept], form.codes[:, is_kept])


def test_matrices_without_zero_points_have_them_at_zero_beside_others() -> None:
    form = replace(_stored(40, 128, 4, 32), zeros=None)
    packed = _in_order(_packed(128, 4, 32))
    packed.put(form, 0, 0, None, "weight")
    assert packed.zeros is not None
    assert (packed.zeros[0] == 8).all()


@pytest.mark.parametrize("value", [8.0, -9.0, 0.5, 300.0])
def test_zero_points_that_are_no_codes_are_told(value: float) -> None:
    form = _stored(40, 128, 4, 32)
    assert form.zeros is not None
    form.zeros[7, 1] = value
    with pytest.raises(CheckpointError, match=rf"x\.weight has the zero point {value:g}, expected"):
        _in_order(_packed(128, 4, 32)).put(form, 0, 0, None, "x.weight")
