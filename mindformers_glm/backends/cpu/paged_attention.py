"""Attention over a paged KV cache, and the scales of a cache of integers.

tests/kernels/reference.py defines what the operators compute.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mindspore import Parameter

from mindformers_glm.backends.cpu.allocation import allocate
from mindformers_glm.backends.cpu.parameters import LoadInto, as_parameter, replace_array
from mindformers_glm.backends.cpu.trace import Module, Operator, Value, call
from mindformers_glm.backends.cpu.weighted_module import WeightedModule, convert_stacked
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.kv_cache import INT8, SCALE_DTYPE
from mindformers_glm.quantization.checks import as_offsets, as_scales


class KvScales(WeightedModule):
    """What an int8 cache's integers of each channel stand for: (integer - offset) * scale.

    Args:
        size: channels of all KV heads.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("key", "value"):
            self._add_checked(f"{name}_scale", size, as_scales)
            self._add_checked(f"{name}_offset", size, as_offsets)

    @property
    def operands(self) -> tuple[Parameter, ...]:
        """As the operator takes them."""
        return self.key_scale, self.key_offset, self.value_scale, self.value_offset

    def _add_checked(
        self, name: str, size: int, check: Callable[[np.ndarray, str], np.ndarray]
    ) -> None:
        array = allocate((size,), "float32")

        def load(views: Sequence[Any]) -> None:
            convert_stacked(array, "float32", views)
            check(array, views[0].name)

        setattr(self, name, as_parameter(array, "float32", name))
        self._targets[name] = LoadInto(load)


class PagedAttention(Module):
    """RoPE, write to the paged cache, attention over it.

    A cache of int8 is made of bytes, 128 for zero. Their scales are the checkpoint's, for each
    channel, or lie beside the cache, for each head of each token.
    """

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, settings: RunnerSettings
    ) -> None:
        super().__init__()
        self.operator = Operator("glm_attention", num_heads * head_dim, writes_operands=True)
        self.write_operator = Operator("glm_write_kv_cache", 1, writes_operands=True)
        block = (num_kv_heads, settings.block_size, head_dim)
        is_int8 = settings.kv_dtype == INT8
        dtype = "uint8" if is_int8 else settings.kv_dtype
        # By its name: the shape of a block, and the type.
        self._caches: dict[str, tuple[tuple[int, ...], str]]
        self._caches = {"key_cache": (block, dtype), "value_cache": (block, dtype)}
        self.kv_scales: KvScales | None = None
        if settings.uses_kv_scales:
            self.kv_scales = KvScales(num_kv_heads * head_dim)
        elif is_int8:
            for name in ("key_scales", "value_scales"):
                self._caches[name] = block[:2], SCALE_DTYPE
        for name, (shape, kept_as) in self._caches.items():
            empty = allocate((0, *shape), kept_as)
            setattr(self, name, as_parameter(empty, kept_as, name))

    @property
    def caches(self) -> list[Parameter]:
        """Keys, values, and what lies beside them: [num_blocks, ...], none at first."""
        return [getattr(self, name) for name in self._caches]

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Reserve [num_blocks, num_kv_heads, block_size, head_dim] for keys and for values."""
        for cache, (shape, dtype) in zip(self.caches, self._caches.values(), strict=True):
            replace_array(cache, allocate((num_blocks, *shape), dtype))

    def construct(self, qkv: Value, cos_sin: Parameter, attn_metadata: Value) -> Value:
        """float32 [max_rows, (heads + 2 kv_heads) * head_dim] -> [max_rows, heads * head_dim]."""
        return call(self.operator, *self._operands(qkv, cos_sin, attn_metadata))

    def write_kv_cache(self, qkv: Value, cos_sin: Parameter, attn_metadata: Value) -> Value:
        """The same without attention: the result, [max_rows, 1], holds nothing."""
        return call(self.write_operator, *self._operands(qkv, cos_sin, attn_metadata))

    def _operands(self, qkv: Value, cos_sin: Parameter, attn_metadata: Value) -> tuple[Any, ...]:
        keys, values, *scales = self.caches
        of_checkpoint = () if self.kv_scales is None else self.kv_scales.operands
        return (qkv, cos_sin, keys, values, attn_metadata, *scales, *of_checkpoint)
