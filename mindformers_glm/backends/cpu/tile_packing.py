"""Weights into the tiles that the kernels read: float as they are, or rounded to integers.

Every function refuses arrays of another shape, type or layout; the loops are C++.
"""

import numpy as np

from mindformers_glm.backends.cpu import library
from mindformers_glm.core.quantization_scheme import GROUP_SIZES
from mindformers_glm.core.sharding import LARGEST_GROUP

TILE_N, TILE_K = 16, 32
# Columns of a tile of integer weights, by their bits.
INT_TILE_K = {8: 64, 4: 128}

_DTYPE_CODES = {"float32": 0, "bfloat16": 1, "float16": 2}
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}


def packed_shape(num_rows: int, num_columns: int, is_gated: bool = False) -> tuple[int, ...]:
    """Shape of a packed [num_rows, num_columns] matrix; gated: num_rows of each half."""
    tiles = -(-num_rows // TILE_N) * (2 if is_gated else 1)
    return (tiles, -(-num_columns // TILE_K), TILE_N, TILE_K)


def pack_rows(
    dst: np.ndarray,
    src: np.ndarray,
    src_dtype: str,
    dst_dtype: str,
    row_offset: int,
    gated_half: int | None = None,
) -> None:
    """Pack matrix rows into tiles, converting with rounding to nearest even.

    Args:
        dst: tiles [ceil(N/16), ceil(K/32), 16, 32], where line r of a tile holds columns 2r and
            2r + 1 of 16 rows (csrc/pack.cc); bfloat16 as any 2-byte type.
        src: [rows, K], contiguous, of any alignment; becomes packed rows row_offset...
        gated_half: where gate and up tiles alternate in dst: 0 for gate rows, 1 for up rows.
    """
    stride, first = (1, 0) if gated_half is None else (2, gated_half)
    _pack(dst, src, src_dtype, dst_dtype, row_offset, tile_stride=stride, tile_first=first)


def pack_gated(dst: np.ndarray, src: np.ndarray, src_dtype: str, dst_dtype: str) -> None:
    """Pack src [2F, K] (F gate rows, then F up rows) so that gate and up tiles alternate.

    Args:
        dst: tiles [2 * ceil(F/16), ceil(K/32), 16, 32].
    """
    half = src.shape[0] // 2
    for part in range(2):
        rows = src[part * half : (part + 1) * half]
        pack_rows(dst, rows, src_dtype, dst_dtype, 0, gated_half=part)


def quantized_shapes(
    num_rows: int, num_columns: int, bits: int, group_size: int, is_gated: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of an integer [num_rows, num_columns] matrix: uint8 tiles, float32 scales.

    Zero points have the shape of scales.

    Args:
        num_rows: of each half, where gated.
        bits: 8 or 4.
        group_size: columns that share a scale, 32, 64 or 128; for 8 bits also 0, the whole row.
    """
    if bits not in INT_TILE_K or (group_size not in GROUP_SIZES and (bits, group_size) != (8, 0)):
        raise ValueError(
            f"{bits} bits in groups of {group_size}: 8 by 0, or 8 or 4 by {GROUP_SIZES}"
        )
    tiles = -(-num_rows // TILE_N) * (2 if is_gated else 1)
    tiles_k = -(-num_columns // INT_TILE_K[bits])
    # Activations are quantized by whole groups of the largest size.
    padded = -(-num_columns // LARGEST_GROUP) * LARGEST_GROUP
    groups = padded // group_size if group_size else 1
    return (tiles, tiles_k, 16, 64), (tiles, groups, TILE_N)


def quantize_rows(
    tiles: np.ndarray,
    scales: np.ndarray,
    src: np.ndarray,
    src_dtype: str,
    bits: int,
    group_size: int,
    row_offset: int,
    gated_half: int | None = None,
    *,
    row_maxima: np.ndarray | None = None,
    kept: range | None = None,
) -> None:
    """Round matrix rows to integers (`reference.quantize_weight`) and pack them.

    Args:
        tiles, scales: arrays of `quantized_shapes`.
        src: [rows, K], contiguous, of any alignment; becomes packed rows row_offset...
        gated_half: where gate and up tiles alternate: 0 for gate rows, 1 for up rows.
        row_maxima: float32 [rows], the largest magnitudes that int8 scales are of; None: src's.
        kept: columns that are quantized; the others count for scales and become zeros. None: all.
    """
    _check_array(tiles, "uint8", is_written=True)
    _check_array(scales, "float32", is_written=True)
    _check_array(src, src_dtype)
    if bits == 8 and group_size:
        raise ValueError(f"int8 is rounded by rows, not by groups of {group_size}")
    rows, columns = src.shape
    if row_maxima is not None:
        _check_array(row_maxima, "float32")
        if row_maxima.shape != (rows,):
            raise ValueError(f"expected {rows} row maxima, got shape {row_maxima.shape}")
    stride, first = (1, 0) if gated_half is None else (2, gated_half)
    room = tiles.shape[0] // stride * TILE_N
    shapes = quantized_shapes(room, columns, bits, group_size, is_gated=stride == 2)
    if (tiles.shape, scales.shape) != shapes or not 0 <= row_offset <= room - rows:
        raise ValueError(
            f"rows {row_offset} to {row_offset + rows} of width {columns} do not fit "
            f"into int{bits} tiles of shape {tiles.shape} with scales of shape {scales.shape}"
        )
    code = library.load().glm_quantize_rows(
        tiles.ctypes.data,
        scales.ctypes.data,
        src.ctypes.data,
        _DTYPE_CODES[src_dtype],
        bits,
        group_size,
        rows,
        columns,
        row_offset,
        stride,
        first,
        None if row_maxima is None else row_maxima.ctypes.data,
        *((0, columns) if kept is None else (kept.start, kept.stop)),
    )
    library.check_result(code)


def convert(dst: np.ndarray, src: np.ndarray, dst_dtype: str, src_dtype: str) -> None:
    """Convert every element of src (of any alignment) into dst, rounding to nearest even."""
    _check_array(dst, dst_dtype, is_written=True)
    _check_array(src, src_dtype)
    if dst.size != src.size:
        raise ValueError(f"dst has {dst.size} elements, src has {src.size}")
    code = library.load().glm_convert(
        dst.ctypes.data, _DTYPE_CODES[dst_dtype], src.ctypes.data, _DTYPE_CODES[src_dtype], src.size
    )
    library.check_result(code)


def _pack(
    dst: np.ndarray,
    src: np.ndarray,
    src_dtype: str,
    dst_dtype: str,
    row_offset: int,
    tile_stride: int,
    tile_first: int,
) -> None:
    _check_array(dst, dst_dtype, is_written=True)
    _check_array(src, src_dtype)
    rows, columns = src.shape
    room = dst.shape[0] // tile_stride * TILE_N
    if dst.shape[1:] != packed_shape(rows, columns)[1:] or not 0 <= row_offset <= room - rows:
        raise ValueError(
            f"rows {row_offset} to {row_offset + rows} of width {columns} do not fit "
            f"into tiles of shape {dst.shape}"
        )
    code = library.load().glm_pack_rows(
        dst.ctypes.data,
        _DTYPE_CODES[dst_dtype],
        src.ctypes.data,
        _DTYPE_CODES[src_dtype],
        rows,
        columns,
        row_offset,
        tile_stride,
        tile_first,
    )
    library.check_result(code)


def _check_array(array: np.ndarray, dtype: str, is_written: bool = False) -> None:
    # numpy calls an unaligned array not C-contiguous in no way; only the strides count here.
    if not array.flags.c_contiguous or array.itemsize != _ITEM_BYTES[dtype]:
        raise ValueError(
            f"expected a contiguous {dtype} array, got {array.dtype} strides {array.strides}"
        )
    if is_written and not array.flags.writeable:
        raise ValueError("the destination is read-only")
