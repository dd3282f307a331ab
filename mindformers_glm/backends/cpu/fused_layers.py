"""Layers that are one operator each: they hold its Parameters and call it.

tests/kernels/reference.py defines what they compute. Activations, the residual stream among them,
are float32 [max_rows, width]; of the rows those are real that a Value's `num_rows` says.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindformers_glm.backends.cpu.allocation import allocate
from mindformers_glm.backends.cpu.column_steps import load_column_steps
from mindformers_glm.backends.cpu.linear_methods import choose_linear_method
from mindformers_glm.backends.cpu.parameters import LoadInto, as_parameter
from mindformers_glm.backends.cpu.trace import Module, Operator, Value, call
from mindformers_glm.backends.cpu.weighted_module import WeightedModule
from mindformers_glm.config.runner_settings import RunnerSettings


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
