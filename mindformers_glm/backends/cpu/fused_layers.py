"""The CPU operators as Cells: each holds its Parameters and says how its kernel is called.

An OperatorSequence runs them. Shapes and types are those of reference.py; operands that are
texts are names of the sequence's inputs, among them `num_rows` int32 [1], the number of real
rows. The residual stream is float32 [max_rows, hidden_size].
"""

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from mindformers_glm.backends.cpu import collectives, library, operators
from mindformers_glm.backends.cpu.allocation import allocate, count_numa_nodes
from mindformers_glm.backends.cpu.linear_methods import LinearWeight, choose_linear_method
from mindformers_glm.backends.cpu.parameters import as_parameter, replace_array
from mindformers_glm.backends.cpu.program import PREVIOUS, RESIDUAL, OperatorSequence, Stage
from mindformers_glm.backends.cpu.weighted_cell import LoadInto, WeightedCell
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.operators import Operators
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel


def initialize() -> None:
    """Static graphs on CPU; O0 keeps the graph as written, without fusion passes."""
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    # MindSpore refuses this once anything has run, even if it changes nothing.
    if ms.get_context("device_target") != "CPU":
        ms.set_device("CPU")


def connect(tensor_parallel: TensorParallel) -> ProcessGroup:
    """Find the other ranks of a launched job; once per process."""
    return collectives.connect(tensor_parallel)


def set_num_threads(count: int | None) -> None:
    """Let the operators use `count` threads; None: the default of library.py."""
    library.set_num_threads(count)


def weight_layout() -> str:
    """Names the layout of the Parameters, the same for every instruction set (csrc/pack.cc)."""
    return f"cpu{library.ABI_VERSION}-{library.TILE_N}x{library.TILE_K}"


def file_mapper() -> Callable[[np.ndarray, int, int], None] | None:
    """What lets a large Parameter be a part of a file, or None where it had better be copied.

    With several memory nodes a copy lies with the thread that reads it, a file lies anywhere.
    """
    return library.map_file if count_numa_nodes() == 1 else None


class _CpuCell(WeightedCell):
    """Allocates Parameters and remembers how each is filled."""

    def place_weights(self) -> None:
        """Give each thread's share of the tiles to its own memory node, if there are several."""
        if count_numa_nodes() > 1:
            for array in self.weight_arrays().values():
                library.first_touch(array)

    def _add_rows(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """A parameter in row order: the embedding table, norm weights, biases."""
        array = allocate(shape, dtype)
        setattr(self, name, as_parameter(array, dtype, name))
        self._targets[name] = LoadInto(lambda views: _convert_stacked(array, dtype, views))

    def _add_weight(self, weight: LinearWeight) -> tuple[Parameter, ...]:
        """The matrix of a linear layer; returns its Parameters as the operator takes them."""
        for name, parameter in weight.parameters.items():
            setattr(self, name, parameter)
        self._targets |= weight.targets
        return tuple(weight.parameters.values())


class Embedding(_CpuCell):
    """Token embedding: `num_rows` rows of the vocabulary, from token `first_id` on."""

    def __init__(
        self,
        num_rows: int,
        hidden_size: int,
        settings: RunnerSettings,
        first_id: int,
        vocab_size: int,
    ) -> None:
        super().__init__()
        self._add_rows("weight", (num_rows, hidden_size), settings.params_dtype)
        self.is_part = num_rows < vocab_size
        self.vocabulary = np.array([first_id, vocab_size], np.int32)
        self.operator = operators.embedding(hidden_size)

    def stage(self) -> Stage:
        """int32 [max_rows] -> float32 [max_rows, hidden_size]; zeros for what others hold."""
        vocabulary = (self.vocabulary,) if self.is_part else ()
        operands = (PREVIOUS, self.weight, "num_rows", *vocabulary)
        return Stage(self.operator, operands, starts_residual=True)


class RmsNorm(_CpuCell):
    """RMSNorm.

    Args:
        num_rows: the name of the input that says how many rows are real.
    """

    def __init__(self, size: int, eps: float, num_rows: str = "num_rows") -> None:
        super().__init__()
        self._add_rows("weight", (size,), "float32")
        self.eps = np.array([eps], np.float32)
        self.num_rows = num_rows
        self.operator = operators.rms_norm(size)

    def stage(self) -> Stage:
        """float32 [max_rows, size] -> the same shape."""
        return Stage(self.operator, (PREVIOUS, self.weight, self.eps, self.num_rows))


class RmsNormAdd(_CpuCell):
    """RMSNorm of a branch's output, added to the residual stream."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self._add_rows("weight", (size,), "float32")
        self.eps = np.array([eps], np.float32)
        self.operator = operators.rms_norm_add(size)

    def stage(self) -> Stage:
        """float32 [max_rows, size] -> residual + norm of it."""
        operands = (PREVIOUS, self.weight, self.eps, RESIDUAL, "num_rows")
        return Stage(self.operator, operands)


class ResidualAdd(nn.Cell):
    """A branch's output, added to the residual stream as it is."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.operator = operators.residual_add(size)

    def stage(self) -> Stage:
        """float32 [max_rows, size] -> residual + it."""
        return Stage(self.operator, (PREVIOUS, RESIDUAL, "num_rows"))


class Linear(_CpuCell):
    """y = x W^T without bias.

    Args:
        num_rows: the name of the input that says how many rows are real.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        settings: RunnerSettings,
        name: str,
        num_rows: str = "num_rows",
    ) -> None:
        super().__init__()
        self.num_rows = num_rows
        method = choose_linear_method(settings, name)
        self.weights = self._add_weight(method.create_weight(out_features, in_features))
        self.operator = method.linear(out_features)

    def stage(self) -> Stage:
        """float32 [max_rows, in_features] -> [max_rows, out_features]."""
        return Stage(self.operator, (PREVIOUS, *self.weights, self.num_rows))


class NormLinear(_CpuCell):
    """y = norm(x) W^T + bias in one kernel (Transformer Engine's LayerNormLinear).

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
        self._add_rows("layer_norm_weight", (in_features,), "float32")
        self.weights = self._add_weight(method.create_weight(out_features, in_features))
        self.has_bias = has_bias
        if has_bias:
            self._add_rows("bias", (out_features,), "float32")
        self.eps = np.array([eps], np.float32)
        self.is_split = method.can_split_activations
        self.num_split = np.array([num_precise], np.int32)
        self.operator = method.norm_linear(out_features)

    def stage(self) -> Stage:
        """float32 [max_rows, in_features] -> [max_rows, out_features]."""
        num_split = (self.num_split,) if self.is_split else ()
        bias = (self.bias,) if self.has_bias else ()
        operands = (PREVIOUS, self.layer_norm_weight, self.eps, *self.weights, "num_rows")
        return Stage(self.operator, (*operands, *num_split, *bias))


class NormGatedLinear(_CpuCell):
    """y = silu(norm(x) Wg^T) * (norm(x) Wu^T): the norm, both halves of fc1 and SwiGLU."""

    def __init__(
        self, in_features: int, out_features: int, eps: float, settings: RunnerSettings, name: str
    ) -> None:
        super().__init__()
        method = choose_linear_method(settings, name)
        self._add_rows("layer_norm_weight", (in_features,), "float32")
        weight = method.create_weight(out_features, in_features, is_gated=True)
        self.weights = self._add_weight(weight)
        self.eps = np.array([eps], np.float32)
        self.operator = method.norm_gated_linear(out_features)

    def stage(self) -> Stage:
        """float32 [max_rows, in_features] -> [max_rows, out_features]."""
        operands = (PREVIOUS, self.layer_norm_weight, self.eps, *self.weights, "num_rows")
        return Stage(self.operator, operands)


class PagedAttention(nn.Cell):
    """RoPE, write to the paged cache, attention over it."""

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, settings: RunnerSettings
    ) -> None:
        super().__init__()
        self._block_shape = (num_kv_heads, settings.block_size, head_dim)
        self._cache_dtype = settings.kv_cache_dtype
        self.operator = operators.attention(num_heads, head_dim)
        for name in ("key_cache", "value_cache"):
            empty = allocate((0, *self._block_shape), self._cache_dtype)
            setattr(self, name, as_parameter(empty, self._cache_dtype, name))

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Reserve [num_blocks, num_kv_heads, block_size, head_dim] for keys and for values."""
        for cache in (self.key_cache, self.value_cache):
            replace_array(cache, allocate((num_blocks, *self._block_shape), self._cache_dtype))

    def stage(self) -> Stage:
        """float32 [max_rows, (heads + 2 kv_heads) * head_dim] -> [max_rows, heads * head_dim]."""
        caches = (self.key_cache, self.value_cache)
        return Stage(self.operator, (PREVIOUS, "cos_sin", *caches, "attn_metadata"))


class GatherRows(nn.Cell):
    """Pick the rows that are sampled."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.operator = operators.gather_rows(size)

    def stage(self) -> Stage:
        """float32 [max_rows, size], `sample_rows` int32 [max_samples] -> [max_samples, size]."""
        return Stage(self.operator, (PREVIOUS, "sample_rows", "num_samples"))


OPERATORS = Operators(
    embedding=Embedding,
    rms_norm=RmsNorm,
    rms_norm_add=RmsNormAdd,
    residual_add=ResidualAdd,
    linear=Linear,
    norm_linear=NormLinear,
    norm_gated_linear=NormGatedLinear,
    paged_attention=PagedAttention,
    gather_rows=GatherRows,
    sequence=OperatorSequence,
    all_reduce=collectives.AllReduce,
    gather_logits=collectives.GatherLogits,
)


def _convert_stacked(array: np.ndarray, dtype: str, views: Sequence[Any]) -> None:
    start = 0
    for view in views:
        for first, rows in view.row_chunks():
            place = array[start + first : start + first + len(rows)]
            library.convert(place, rows, dst_dtype=dtype, src_dtype=view.dtype)
        start += len(view.data)
