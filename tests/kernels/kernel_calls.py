"""Arguments of the C++ operators, as NumPy arrays."""

import numpy as np

from mindformers_glm.core.attn_metadata import AttnMetadataBuffer
from mindformers_glm.kernels import reference
from mindformers_glm.kernels.cpu import library

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
    shape = library.packed_shape(num_rows, weight.shape[1], is_gated)
    tiles = stored(np.full(shape, np.nan, np.float32), dtype)
    if is_gated:
        library.pack_gated(tiles, weight, "float32", dtype)
    else:
        library.pack_rows(tiles, weight, "float32", dtype, 0)
    return tiles


def metadata(
    rows: reference.Rows, seq_lens: np.ndarray, spare: int = 2, spare_seqs: int = 2
) -> np.ndarray:
    """The metadata vector, with room for more rows and sequences than there are."""
    num_seqs, max_blocks = rows.block_tables.shape
    buffer = AttnMetadataBuffer(len(rows.positions) + spare, num_seqs + spare_seqs, max_blocks)
    buffer.fill(rows.positions, rows.slot_mapping, rows.query_start, seq_lens, rows.block_tables)
    return buffer.array
