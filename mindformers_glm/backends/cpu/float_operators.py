"""The CPU's operators in float32 on NumPy arrays, without MindSpore: what quantizers run."""

from collections.abc import Sequence

import numpy as np

from mindformers_glm.backends.cpu import library, tile_packing
from mindformers_glm.backends.cpu.allocation import allocate
from mindformers_glm.backends.cpu.attn_metadata import AttnMetadataBuffer
from mindformers_glm.backends.cpu.operators import call_operator
from mindformers_glm.backends.cpu.rotary import build_cos_sin_table
from mindformers_glm.backends.float_operators import FloatMatrix
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.rounding import round_to_dtype

_BLOCK_SIZE = 32  # tokens
_CHUNK_ROWS = 512  # of a matrix that are converted at a time
_FAST_BFLOAT16 = ("amx",)  # instruction sets with 16 times as many products as in float32


class _Tiles:
    """A matrix in tiles of one type (protocol: FloatMatrix in backends/float_operators.py)."""

    def __init__(self, symbol: str, shape: tuple[int, ...], dtype: str) -> None:
        num_rows, num_columns = shape
        self._symbol, self._num_rows, self._dtype = symbol, num_rows, dtype
        self._tiles = allocate(tile_packing.packed_shape(num_rows, num_columns), dtype)

    def put(self, first_row: int, rows: np.ndarray) -> None:
        """Fill in some float32 rows."""
        rows = np.ascontiguousarray(rows)
        tile_packing.pack_rows(self._tiles, rows, "float32", self._dtype, first_row)

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """See FloatMatrix."""
        count = np.array([len(x)], np.int32)
        return call_operator(self._symbol, len(x), self._num_rows, x, self._tiles, count)


class _SplitMatrix:
    """A matrix as the sum of two of bfloat16, times activations as the same (FloatMatrix).

    Where tiles of bfloat16 are multiplied by hardware, this is faster than float32, and 16 bits of
    each factor count. What the second parts make together is left out.
    """

    def __init__(self, weight: np.ndarray) -> None:
        shape = weight.shape
        self._high, low = (_Tiles("glm_linear_bf16", shape, "bfloat16") for _ in range(2))
        has_low = False
        for begin in range(0, len(weight), _CHUNK_ROWS):
            rows = weight[begin : begin + _CHUNK_ROWS]
            rest = rows - round_to_dtype(np.ascontiguousarray(rows), "bfloat16")
            self._high.put(begin, rows)
            has_low = has_low or bool(rest.any())
            low.put(begin, rest)
        self._low = low if has_low else None  # weights of a bfloat16 checkpoint have none

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """See FloatMatrix."""
        high = round_to_dtype(np.ascontiguousarray(x), "bfloat16")
        y = self._high.multiply(high)
        y += self._high.multiply(x - high)
        if self._low is not None:
            y += self._low.multiply(high)
        return y


class CpuFloatOperators:
    """See FloatOperators in backends/float_operators.py.

    Args:
        seq_lens: tokens of each sequence, at least one.
        is_exact: products of floats are float32 throughout; else 16 bits of each factor count
            where that is faster.
    """

    def __init__(self, config: GlmConfig, seq_lens: Sequence[int], is_exact: bool) -> None:
        self._config, self._is_exact = config, is_exact
        self._eps = np.array([config.rms_norm_eps], np.float32)
        self._cos_sin = build_cos_sin_table(
            max(seq_lens), config.rotary_dim, config.rope_theta, config.rope_scaling, "float32"
        )
        self._slots, self._num_blocks, self._metadata = _lay_out(seq_lens)

    def matrix(self, weight: np.ndarray) -> FloatMatrix:
        """See FloatOperators."""
        if not self._is_exact and library.isa() in _FAST_BFLOAT16:
            return _SplitMatrix(weight)
        matrix = _Tiles("glm_linear_f32", weight.shape, "float32")
        matrix.put(0, weight)
        return matrix

    def integer_matrix(self, codes: np.ndarray) -> FloatMatrix:
        """See FloatOperators: bfloat16 holds such numbers, and products are summed in float32."""
        matrix = _Tiles("glm_linear_bf16", codes.shape, "bfloat16")
        for begin in range(0, len(codes), _CHUNK_ROWS):
            matrix.put(begin, codes[begin : begin + _CHUNK_ROWS].astype(np.float32))
        return matrix

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """See FloatOperators."""
        count = np.array([len(x)], np.int32)
        return call_operator("glm_rms_norm", len(x), x.shape[1], x, weight, self._eps, count)

    def rotate_keys(self, keys: np.ndarray) -> np.ndarray:
        """See FloatOperators."""
        caches = self._empty_caches(keys.shape[1] // self._config.head_dim)
        rows = np.concatenate([keys, keys, keys], axis=1)  # as many queries: nobody reads them
        call_operator(
            "glm_write_kv_cache", len(rows), 1, rows, self._cos_sin, *caches, self._metadata
        )
        return caches[0].transpose(0, 2, 1, 3).reshape(-1, keys.shape[1])[self._slots]

    def attend(self, qkv: np.ndarray) -> np.ndarray:
        """See FloatOperators."""
        config = self._config
        caches = self._empty_caches(config.num_key_value_heads)
        width = config.num_attention_heads * config.head_dim
        return call_operator(
            "glm_attention", len(qkv), width, qkv, self._cos_sin, *caches, self._metadata
        )

    def _empty_caches(self, num_heads: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (self._num_blocks, num_heads, _BLOCK_SIZE, self._config.head_dim)
        return allocate(shape, "float32"), allocate(shape, "float32")


def _lay_out(seq_lens: Sequence[int]) -> tuple[np.ndarray, int, np.ndarray]:
    """Each sequence in blocks of its own: slots of all rows, number of blocks, metadata."""
    num_blocks = [-(-length // _BLOCK_SIZE) for length in seq_lens]
    first_blocks = np.cumsum([0, *num_blocks])
    tables = [
        list(range(first, first + count))
        for first, count in zip(first_blocks.tolist(), num_blocks, strict=False)
    ]
    positions = np.concatenate([np.arange(length) for length in seq_lens]).astype(np.int32)
    starts = np.repeat(first_blocks[:-1] * _BLOCK_SIZE, seq_lens)
    slots = (positions + starts).astype(np.int32)
    buffer = AttnMetadataBuffer(len(positions), len(seq_lens), max(num_blocks))
    query_start = np.cumsum([0, *seq_lens]).astype(np.int32)
    buffer.fill(positions, slots, query_start, np.array(seq_lens, np.int32), tables)
    return slots, int(first_blocks[-1]), buffer.array
