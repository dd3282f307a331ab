"""Scales of an int8 KV cache: what its integers of each channel stand for."""

import numpy as np

from mindformers_glm.quantizer.float_layers import FloatNetwork, Multiply, Product
from mindformers_glm.quantizer.result import KvScales
from mindformers_glm.weights.tensor_names import QKV

_LARGEST_CODE = np.float32(127)
_SMALLEST_SCALE = np.float32(2.0**-23)


class KvObserver:
    """Finds the scales while a layer is run: symmetric, by the largest magnitude of each channel.

    Args:
        is_rotated: keys as the cache holds them; else before RoPE, as msModelSlim takes them,
            where a rotated pair may exceed its scales by the root of 2.
    """

    def __init__(self, network: FloatNetwork, is_rotated: bool) -> None:
        self._network, self._is_rotated = network, is_rotated
        self.scales: KvScales | None = None

    def watch(self, multiply: Multiply) -> Multiply:
        """The same products, looked at."""

        def watched(parameter: str, x: np.ndarray) -> Product:
            product = multiply(parameter, x)
            if parameter != QKV:
                return product
            qkv = product(slice(0, len(x)))
            self._observe(qkv)
            return lambda rows: qkv[rows]

        return watched

    def _observe(self, qkv: np.ndarray) -> None:
        config = self._network.config
        size = config.num_key_value_heads * config.head_dim
        keys, values = qkv[:, -2 * size : -size], qkv[:, -size:]
        if self._is_rotated:
            keys = self._network.operators.rotate_keys(keys)
        key_scale, value_scale = _find_scales(keys), _find_scales(values)
        self.scales = KvScales(
            key_scale, np.zeros_like(key_scale), value_scale, np.zeros_like(value_scale)
        )


def _find_scales(x: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x).max(axis=0) / _LARGEST_CODE, _SMALLEST_SCALE)
