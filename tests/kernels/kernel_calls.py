"""Arguments of the C++ operators, as NumPy arrays."""

import numpy as np

from mindformers_glm.backends.cpu import tile_packing
from mindformers_glm.backends.cpu.attn_metadata import AttnMetadataBuffer
from tests.kernels import reference

SUFFIX = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "bfloat16x2": "bf16x2"}
# Every (weight, compute) pair that is allowed.
PAIRS = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
    ("float16", "float16"),
    ("float16", "float32"),
]
# What an output holds before the call: rows that are not real must still hold it afterwards.
UNTOUCHED = np.float32(-12345.0)


def output(*shape: int) -> np.ndarray:
    """An output array that shows which elements were not written."""
    return np.full(shape, UNTOUCHED, np.float32)


def count(value: int) -> np.ndarray:
    """An int32 [1] tensor."""
    return np.array([value], np.int32)


def scalar(value: float) -> np.ndarray:
    """A float32 [1] tensor."""
    return np.array([value], np.float32)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values as `dtype` lies in memory; bfloat16 as uint16."""
    if dtype == "bfloat16":
        return reference.float32_to_bfloat16(values)
    return np.ascontiguousarray(values, dtype)


def loaded(array: np.ndarray) -> np.ndarray:
    """The reverse of `stored`."""
    if array.dtype == np.uint16:
        return reference.bfloat16_to_float32(array)
    return array.astype(np.float32)


def packed(weight: np.ndarray, dtype: str, is_gated: bool = False) -> np.ndarray:
    """Tiles of a float32 matrix; what pads rows is filled with NaN, as nothing may depend on it."""
    num_rows = weight.shape[0] // (2 if is_gated else 1)
    shape = tile_packing.packed_shape(num_rows, weight.shape[1], is_gated)
    tiles = stored(np.full(shape, np.nan, np.float32), dtype)
    if is_gated:
        tile_packing.pack_gated(tiles, weight, "float32", dtype)
    else:
        tile_packing.pack_rows(tiles, weight, "float32", dtype, 0)
    return tiles


def metadata(
    rows: reference.Rows, seq_lens: np.ndarray, spare: int = 2, spare_seqs: int = 2
) -> np.ndarray:
    """The metadata vector, with room for more rows and sequences than there are."""
    num_seqs, max_blocks = rows.block_tables.shape
    buffer = AttnMetadataBuffer(len(rows.positions) + spare, num_seqs + spare_seqs, max_blocks)
    buffer.fill(rows.positions, rows.slot_mapping, rows.query_start, seq_lens, rows.block_tables)
    return buffer.array


def packed_ints(
    q: np.ndarray, scales: np.ndarray, bits: int, group_size: int, is_gated: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles and scales of integers [N, K] and scales [N, groups], by NumPy (csrc/quantize.cc).

    What pads rows holds another value than zero and NaN scales, as nothing may depend on it.
    """
    if is_gated:
        halves = [
            packed_ints(*part, bits, group_size)
            for part in zip(np.split(q, 2), np.split(scales, 2), strict=True)
        ]
        tiles, tile_scales = (np.stack(parts, axis=1) for parts in zip(*halves, strict=True))
        return tiles.reshape(-1, *tiles.shape[2:]), tile_scales.reshape(-1, *tile_scales.shape[2:])
    shape, scales_shape = tile_packing.quantized_shapes(*q.shape, bits, group_size)
    zero = 1 << (bits - 1)
    padded = np.full((shape[0] * 16, shape[1] * tile_packing.INT_TILE_K[bits]), zero, np.int32)
    padded[len(q) :] = zero + 3
    padded[: len(q), : q.shape[1]] = q + zero
    # [tile row, n, tile, line, (half,) column] -> [(half,) tile row, tile, line, n, column]
    if bits == 8:
        lines = padded.reshape(shape[0], 16, shape[1], 16, 4).transpose(0, 2, 3, 1, 4)
    else:
        halves = padded.reshape(shape[0], 16, shape[1], 16, 2, 4).transpose(4, 0, 2, 3, 1, 5)
        lines = halves[0] | halves[1] << 4
    tile_scales = _by_tiles(scales, scales_shape, padding_rows=np.float32(np.nan))
    return np.ascontiguousarray(lines.reshape(shape), np.uint8), tile_scales


def packed_zeros(
    zeros: np.ndarray, num_columns: int, bits: int, group_size: int, is_gated: bool = False
) -> np.ndarray:
    """Zero points [N, groups] of `packed_ints`, without sign as the tiles' codes."""
    if is_gated:
        halves = [packed_zeros(part, num_columns, bits, group_size) for part in np.split(zeros, 2)]
        return np.stack(halves, axis=1).reshape(-1, *halves[0].shape[1:])
    _, shape = tile_packing.quantized_shapes(len(zeros), num_columns, bits, group_size)
    return _by_tiles((zeros + (1 << (bits - 1))).astype(np.uint8), shape, padding_rows=np.uint8(77))


def _by_tiles(
    values: np.ndarray, shape: tuple[int, ...], padding_rows: np.float32 | np.uint8
) -> np.ndarray:
    """[N, groups] as [tiles, groups, 16]; groups of padding are zeros."""
    padded = np.full((shape[0] * 16, shape[1]), padding_rows, values.dtype)
    padded[: len(values)] = 0
    padded[: len(values), : values.shape[1]] = values
    return np.ascontiguousarray(padded.reshape(shape[0], 16, -1).transpose(0, 2, 1))


def unpacked_ints(
    tiles: np.ndarray, scales: np.ndarray, num_rows: int, num_columns: int, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """The reverse of `packed_ints`; what pads columns must be zero."""
    lines = tiles.reshape(*tiles.shape[:3], 16, 4).astype(np.int32)
    parts = lines[None] if bits == 8 else np.stack([lines & 15, lines >> 4])
    # [half, tile row, tile, line, n, column] -> [tile row, n, tile, line, half, column]
    q = parts.transpose(1, 4, 2, 3, 0, 5).reshape(len(tiles) * 16, -1) - (1 << (bits - 1))
    assert (q[:num_rows, num_columns:] == 0).all(), "padding columns must be zero"
    return q[:num_rows, :num_columns], scales.transpose(0, 2, 1).reshape(len(tiles) * 16, -1)[
        :num_rows
    ]
