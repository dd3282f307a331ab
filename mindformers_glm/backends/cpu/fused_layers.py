"""Layers that are one operator each: they hold its Parameters and call it.

tests/kernels/reference.py defines what they compute. Activations, the residual stream among them,
are float32 [max_rows, width]; of the rows those are real that a Value's `num_rows` says.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mindspore import Parameter

from mindformers_glm.backends.cpu import mapped_memory, tile_packing
from mindformers_glm.backends.cpu.allocation import allocate, count_numa_nodes
from mindformers_glm.backends.cpu.column_steps import load_column_steps
from mindformers_glm.backends.cpu.linear_methods import LinearWeight, choose_linear_method
from mindformers_glm.backends.cpu.parameters import LoadInto, as_parameter, replace_array
from mindformers_glm.backends.cpu.trace import Module, Operator, Value, call
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.kv_cache import INT8, SCALE_DTYPE
from mindformers_glm.quantization.checks import as_offsets, as_scales


class WeightedModule(Module):
    """Base of the layers that own weights.

    The Parameters are allocated, not filled, when the layer is built; the memory is touched only by
    `load`, so that a weight is never in memory twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._targets: dict[str, LoadInto] = {}

    def weight_targets(self) -> dict[str, LoadInto]:
        """Local parameter name, as the weight rules call it -> how it is filled."""
        return self._targets

    def weight_arrays(self) -> dict[str, np.ndarray]:
        """Local parameter name -> its memory as a NumPy array, which can be written to."""
        arrays = {}
        for name, parameter in self.parameters_and_names(expand=False):
            arrays[name] = parameter.asnumpy()
            if arrays[name].ctypes.data != parameter.data_ptr():
                raise RuntimeError(f"MindSpore copied the memory of parameter {name}")
        return arrays

    def place_weights(self) -> None:
        """Give each thread's share of the tiles to its own memory node, if there are several."""
        if count_numa_nodes() > 1:
            for array in self.weight_arrays().values():
                mapped_memory.first_touch(array)

    def _add_rows(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """A parameter in row order: the embedding table, norm weights, biases."""
        array = allocate(shape, dtype)
        setattr(self, name, as_parameter(array, dtype, name))
        self._targets[name] = LoadInto(lambda views: _convert_stacked(array, dtype, views))

    def _add_norm(self, size: int, has_bias: bool) -> None:
        """The norm in front of a linear layer: its weight, and its bias as a second row."""
        array = allocate((2, size) if has_bias else (size,), "float32")
        name, rows = "layer_norm_weight", array.reshape(-1)
        self.layer_norm_weight = as_parameter(array, "float32", name)
        self._targets[name] = LoadInto(lambda views: _convert_stacked(rows, "float32", views))

    def _add_weight(self, weight: LinearWeight) -> tuple[Parameter, ...]:
        """The matrix of a linear layer; returns its Parameters as the operator takes them."""
        for name, parameter in weight.parameters.items():
            setattr(self, name, parameter)
        self._targets |= weight.targets
        return tuple(weight.parameters.values())


class Embedding(WeightedModule):
    """Token embedding: `num_rows` rows of the vocabulary, from token `first_id` on."""

    def __init__(
        self, num_rows: int, hidden_size: int, dtype: str, first_id: int, vocab_size: int
    ) -> None:
        super().__init__()
        self._add_rows("weight", (num_rows, hidden_size), dtype)
        is_part = num_rows < vocab_size
        self.vocabulary = (np.array([first_id, vocab_size], np.int32),) if is_part else ()
        self.operator = Operator("glm_embedding", hidden_size)

    def construct(self, token_ids: Value) -> Value:
        """int32 [max_rows] -> float32 [max_rows, hidden_size]; zeros for what others hold."""
        return call(self.operator, token_ids, self.weight, _num_rows(token_ids), *self.vocabulary)


class RmsNorm(WeightedModule):
    """RMSNorm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self._add_rows("weight", (size,), "float32")
        self.eps = np.array([eps], np.float32)
        self.operator = Operator("glm_rms_norm", size)

    def construct(self, x: Value) -> Value:
        """float32 [max_rows, size] -> the same shape."""
        return call(self.operator, x, self.weight, self.eps, _num_rows(x))


class RmsNormAdd(WeightedModule):
    """RMSNorm of a branch's output, added to the residual stream."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self._add_rows("weight", (size,), "float32")
        self.eps = np.array([eps], np.float32)
        self.operator = Operator("glm_rms_norm_add", size)

    def construct(self, x: Value, residual: Value) -> Value:
        """residual + norm(x), all float32 [max_rows, size]."""
        return call(self.operator, x, self.weight, self.eps, residual, _num_rows(x))


class ResidualAdd(Module):
    """A branch's output, added to the residual stream as it is."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.operator = Operator("glm_residual_add", size)

    def construct(self, x: Value, residual: Value) -> Value:
        """residual + x, all float32 [max_rows, size]."""
        return call(self.operator, x, residual, _num_rows(x))


class Linear(WeightedModule):
    """y = x W^T without bias; `name` chooses how the weight is kept.

    Args:
        has_row_maxima: activations are parts of rows, whose scales are of the largest magnitudes of
            the whole ones, which are given.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        settings: RunnerSettings,
        name: str,
        has_row_maxima: bool = False,
    ) -> None:
        super().__init__()
        method = choose_linear_method(settings, name)
        self.weights = self._add_weight(method.create_weight(out_features, in_features))
        self.needs_prompt_rows = method.needs_prompt_rows
        self.operator = method.linear(out_features, has_row_maxima)
        self.has_rounded_columns = name in settings.rounded_columns
        if self.has_rounded_columns:
            scheme = settings.scheme_of(name)
            self._add_steps(in_features, group=scheme.activation_group if scheme else 1)

    def construct(self, x: Value, row_maxima: Value | None = None) -> Value:
        """float32 [max_rows, in_features] -> [max_rows, out_features].

        Args:
            row_maxima: float32 [max_rows, 1], where `has_row_maxima` says so.
        """
        if self.has_rounded_columns:
            x = call(self.rounding, x, self.input_steps, _num_rows(x))
        maxima = () if row_maxima is None else (row_maxima,)
        rows = _rows(x, self.needs_prompt_rows)
        return call(self.operator, x, *maxima, *self.weights, *rows)

    def _add_steps(self, size: int, group: int) -> None:
        """The scale and the offset of each column of the activations, loaded with the weight."""
        steps, load = allocate((2, size), "float32"), self._targets["weight"].load
        self.input_steps = as_parameter(steps, "float32", "input_steps")
        self.rounding = Operator("glm_round_columns", size)

        def load_both(views: Sequence[Any]) -> None:
            load_column_steps(steps, views, group)
            load(views)

        self._targets["weight"] = LoadInto(load_both)


class NormLinear(WeightedModule):
    """y = norm(x) W^T + bias in one operator (Transformer Engine's LayerNormLinear).

    Args:
        num_precise: so many of the last outputs are to have more digits than bfloat16 activations
            give them, where those are what the layer computes in.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        has_bias: bool,
        num_precise: int,
        eps: float,
        settings: RunnerSettings,
        name: str,
    ) -> None:
        super().__init__()
        method = choose_linear_method(settings, name)
        self._add_norm(in_features, has_bias=name in settings.shifted_norms)
        self.weights = self._add_weight(method.create_weight(out_features, in_features))
        self.has_bias = has_bias
        if has_bias:
            self._add_rows("bias", (out_features,), "float32")
        self.eps = np.array([eps], np.float32)
        self.needs_prompt_rows, self.adds_bias = method.needs_prompt_rows, method.adds_bias
        is_split = method.can_split_activations
        self.num_split = (np.array([num_precise], np.int32),) if is_split else ()
        self.operator = method.norm_linear(out_features)

    def construct(self, x: Value) -> Value:
        """float32 [max_rows, in_features] -> [max_rows, out_features]."""
        bias = (self.bias,) if self.has_bias and self.adds_bias else ()
        rows = _rows(x, self.needs_prompt_rows)
        operands = (x, self.layer_norm_weight, self.eps, *self.weights, *rows)
        return call(self.operator, *operands, *self.num_split, *bias)


class NormGatedLinear(WeightedModule):
    """y = silu(norm(x) Wg^T) * (norm(x) Wu^T): the norm, both halves of fc1 and SwiGLU."""

    def __init__(
        self, in_features: int, out_features: int, eps: float, settings: RunnerSettings, name: str
    ) -> None:
        super().__init__()
        method = choose_linear_method(settings, name)
        self._add_norm(in_features, has_bias=name in settings.shifted_norms)
        weight = method.create_weight(out_features, in_features, is_gated=True)
        self.weights = self._add_weight(weight)
        self.eps = np.array([eps], np.float32)
        self.needs_prompt_rows = method.needs_prompt_rows
        self.operator = method.norm_gated_linear(out_features)

    def construct(self, x: Value) -> Value:
        """float32 [max_rows, in_features] -> [max_rows, out_features]."""
        rows = _rows(x, self.needs_prompt_rows)
        operands = (x, self.layer_norm_weight, self.eps, *self.weights, *rows)
        return call(self.operator, *operands)


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
            _convert_stacked(array, "float32", views)
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


class GatherRows(Module):
    """Pick the rows that are sampled."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.operator = Operator("glm_gather_rows", size, rows_operand=1)

    def construct(self, x: Value, rows: Value) -> Value:
        """float32 [max_rows, size], int32 [max_samples] -> [max_samples, size]."""
        return call(self.operator, x, rows, _num_rows(rows))


def _num_rows(value: Value) -> Value:
    assert value.num_rows is not None
    return value.num_rows


def _rows(value: Value, needs_prompt_rows: bool) -> tuple[Value, ...]:
    """What an operator is told of rows: which are of prompts, where it asks, and how many."""
    if not needs_prompt_rows:
        return (_num_rows(value),)
    assert value.prompt_rows is not None
    return (value.prompt_rows, _num_rows(value))


def _convert_stacked(array: np.ndarray, dtype: str, views: Sequence[Any]) -> None:
    start = 0
    for view in views:
        for first, rows in view.row_chunks():
            place = array[start + first : start + first + len(rows)]
            tile_packing.convert(place, rows, dst_dtype=dtype, src_dtype=view.dtype)
        start += view.num_rows
