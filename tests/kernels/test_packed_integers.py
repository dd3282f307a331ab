"""Integers that are there already lie as those that the operators' own quantizer makes."""

import numpy as np
import pytest

from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.packed_integers import PackedIntegers
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import QuantizedRows
from tests.kernels import reference

# Rows and columns: whole tiles, parts of tiles, a single row, less than a group.
SHAPES = [(32, 256), (35, 200), (1, 72), (17, 128)]


def _form(weight: np.ndarray, bits: int, group_size: int) -> QuantizedRows:
    codes, scales = reference.quantize_weight(weight, bits, group_size)
    groups = np.arange(weight.shape[1]) // (group_size or weight.shape[1])
    return QuantizedRows(codes.astype(np.int8), scales.astype(np.float32), None, groups)


def _empty(
    rows: int, columns: int, bits: int, group_size: int, is_gated: bool
) -> tuple[np.ndarray, np.ndarray]:
    shapes = library.quantized_shapes(rows, columns, bits, group_size, is_gated)
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
            library.quantize_rows(
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
    library.quantize_rows(
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
