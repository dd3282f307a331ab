"""Scales of an int8 KV cache: what its integers of each channel stand for."""

import numpy as np

from mindformers_glm.quantizer.result import KvScales

_LARGEST_CODE = np.float32(127)
_SMALLEST_SCALE = np.float32(2.0**-23)


def find_kv_scales(keys: np.ndarray, values: np.ndarray) -> KvScales:
    """Symmetric, by the largest magnitude of each channel.

    Args:
        keys: float32 [rows, kv_heads * head_dim], rotated, as the cache holds them; msModelSlim
            takes them before RoPE, where a rotated pair may exceed its scale by the root of 2.
        values: of the same shape.
    """
    key_scale, value_scale = _scales(keys), _scales(values)
    return KvScales(key_scale, np.zeros_like(key_scale), value_scale, np.zeros_like(value_scale))


def _scales(x: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x).max(axis=0) / _LARGEST_CODE, _SMALLEST_SCALE)
