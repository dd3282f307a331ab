"""Packing of weights into tiles and conversion between float types."""

import numpy as np
import pytest

from mindformers_glm.backends.cpu import tile_packing
from mindformers_glm.backends.cpu.allocation import allocate
from tests.kernels import reference
from tests.kernels.kernel_calls import loaded, packed, stored

DTYPES = ["float32", "bfloat16", "float16"]


def unpacked(tiles: np.ndarray, num_rows: int, num_columns: int) -> np.ndarray:
    """The matrix in float32, after a check of the columns that pad it."""
    values = loaded(tiles)
    if tiles.dtype == np.uint16:  # bfloat16: [16 pairs of columns][16 rows][2]
        by_column = values.reshape(*tiles.shape[:2], 16, 16, 2).transpose(0, 3, 1, 2, 4)
    else:  # [32 columns][16 rows]
        by_column = values.reshape(*tiles.shape[:2], 32, 16).transpose(0, 3, 1, 2)
    matrix = by_column.reshape(len(tiles) * 16, -1)
    assert (matrix[:num_rows, num_columns:] == 0).all(), "padding columns must be zero"
    return matrix[:num_rows, :num_columns]


@pytest.mark.parametrize("src_dtype", DTYPES)
@pytest.mark.parametrize("dst_dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (17, 33), (50, 100)], ids=str)
def test_packed_matrix_has_every_element_in_its_tile(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], src_dtype: str, dst_dtype: str
) -> None:
    source = stored(rng.standard_normal(shape), src_dtype)
    tiles = stored(np.full(tile_packing.packed_shape(*shape), np.nan), dst_dtype)
    tile_packing.pack_rows(tiles, source, src_dtype, dst_dtype, 0)
    expected = reference.round_to(loaded(source), dst_dtype)
    np.testing.assert_array_equal(unpacked(tiles, *shape), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stacked_sources_are_packed_one_below_the_other(
    isa: str, rng: np.random.Generator, dtype: str
) -> None:
    parts = [stored(rng.standard_normal((n, 40)), dtype) for n in (20, 3, 3, 38)]
    tiles = stored(np.full(tile_packing.packed_shape(64, 40), np.nan), dtype)
    offset = 0
    for part in parts:
        tile_packing.pack_rows(tiles, part, dtype, dtype, offset)
        offset += len(part)
    np.testing.assert_array_equal(unpacked(tiles, 64, 40), loaded(np.vstack(parts)))


@pytest.mark.parametrize("half", [1, 16, 17, 40])
def test_gate_and_up_tiles_alternate(rng: np.random.Generator, half: int) -> None:
    weight = rng.standard_normal((2 * half, 50)).astype(np.float32)
    tiles = packed(weight, "float32", is_gated=True)
    np.testing.assert_array_equal(unpacked(tiles[0::2], half, 50), weight[:half])
    np.testing.assert_array_equal(unpacked(tiles[1::2], half, 50), weight[half:])


@pytest.mark.parametrize("offset", [1, 7])
def test_source_may_be_unaligned(isa: str, rng: np.random.Generator, offset: int) -> None:
    values = stored(rng.standard_normal((5, 40)), "bfloat16")
    memory = np.zeros(values.nbytes + offset, np.uint8)
    memory[offset:] = values.ravel().view(np.uint8)
    source = np.ndarray(values.shape, values.dtype, buffer=memory[offset:].data)
    tiles = allocate(tile_packing.packed_shape(5, 40), "float32")
    tile_packing.pack_rows(tiles, source, "bfloat16", "float32", 0)
    np.testing.assert_array_equal(unpacked(tiles, 5, 40), loaded(values))


def test_every_16_bit_pattern_survives(isa: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for dtype, array in [("bfloat16", patterns), ("float16", patterns.view(np.float16))]:
        wide = np.empty(1 << 16, np.float32)
        tile_packing.convert(wide, array, "float32", dtype)
        np.testing.assert_array_equal(wide, loaded(array))
        back = np.empty_like(array)
        tile_packing.convert(back, wide, dtype, "float32")
        is_nan = np.isnan(wide)
        np.testing.assert_array_equal(back.view(np.uint16)[~is_nan], array.view(np.uint16)[~is_nan])
        assert np.isnan(loaded(back)[is_nan]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_to_nearest_even(isa: str, rng: np.random.Generator, dtype: str) -> None:
    exponents = np.exp2(rng.uniform(-30, 17, 100_001))
    values = (exponents * rng.choice([-1, 1], len(exponents))).astype(np.float32)
    # Exactly between two neighbours, one below, one above; subnormals; overflow; infinity.
    ties = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11])
    special = np.float32([0.0, -0.0, 65504, 65519, 65520, 65536, 3e38, np.inf, -np.inf, 2.0**-25])
    values = np.concatenate([values, ties, np.nextafter(ties, 0), np.nextafter(ties, 2), special])
    found = stored(np.zeros_like(values), dtype)
    tile_packing.convert(found, values, dtype, "float32")
    np.testing.assert_array_equal(loaded(found), reference.round_to(values, dtype))


def test_wrong_arrays_are_refused(rng: np.random.Generator) -> None:
    source = rng.standard_normal((20, 40)).astype(np.float32)
    tiles = allocate(tile_packing.packed_shape(20, 40), "float32")
    with pytest.raises(ValueError, match="do not fit"):
        tile_packing.pack_rows(tiles, source, "float32", "float32", 13)
    with pytest.raises(ValueError, match="do not fit"):
        tile_packing.pack_rows(tiles, source[:, :20].copy(), "float32", "float32", 0)
    with pytest.raises(ValueError, match="contiguous"):
        tile_packing.pack_rows(tiles, source.T, "float32", "float32", 0)
    with pytest.raises(ValueError, match="contiguous bfloat16"):
        tile_packing.pack_rows(tiles, source, "bfloat16", "float32", 0)
    with pytest.raises(ValueError, match="elements"):
        tile_packing.convert(np.empty(3, np.float32), np.empty(4, np.float32), "float32", "float32")
    tiles.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        tile_packing.pack_rows(tiles, source, "float32", "float32", 0)
