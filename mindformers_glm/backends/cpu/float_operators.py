"""The CPU's operators in float32 on NumPy arrays, without MindSpore: what quantizers run."""

from collections.abc import Sequence

import numpy as np

from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.allocation import allocate
from mindformers_glm.backends.cpu.attn_metadata import AttnMetadataBuffer
from mindformers_glm.backends.cpu.operators import call_operator
from mindformers_glm.backends.cpu.rotary import build_cos_sin_table
from mindformers_glm.config.glm_config import GlmConfig

_BLOCK_SIZE = 32  # tokens


class CpuFloatMatrix:
    """A matrix in tiles (protocol: FloatMatrix in backends/float_operators.py)."""

    def __init__(self, weight: np.ndarray) -> None:
        self._num_rows, num_columns = weight.shape
        self._tiles = allocate(library.packed_shape(self._num_rows, num_columns), "float32")
        library.pack_rows(self._tiles, np.ascontiguousarray(weight), "float32", "float32", 0)

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """See FloatMatrix."""
        return call_operator(
            "glm_linear_f32", len(x), self._num_rows, x, self._tiles, np.array([len(x)], np.int32)
        )


class CpuFloatOperators:
    """See FloatOperators in backends/float_operators.py.

    Args:
        seq_lens: tokens of each sequence, at least one.
    """

    def __init__(self, config: GlmConfig, seq_lens: Sequence[int]) -> None:
        self._config = config
        self._eps = np.array([config.rms_norm_eps], np.float32)
        self._cos_sin = build_cos_sin_table(
            max(seq_lens), config.rotary_dim, config.rope_theta, config.rope_scaling, "float32"
        )
        self._slots, self._num_blocks, self._metadata = _lay_out(seq_lens)

    def matrix(self, weight: np.ndarray) -> CpuFloatMatrix:
        """See FloatOperators."""
        return CpuFloatMatrix(weight)

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
