"""The kernels as MindSpore primitives, for Cells that run in GRAPH_MODE.

Every function returns a configured `ops.Custom`; call it with tensors in the order given. M is the
number of rows the graph was built for; `num_rows` (int32 [1]) says how many of them are real, the
others are neither read nor written. Activations are float32. `kernels/reference.py` defines what
each computes.
"""

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import ops

from mindformers_glm.kernels.cpu.library import library_path, load

# Activations as the sum of two bfloat16 values: twice the products, 16 digits instead of 8.
SPLIT_BFLOAT16 = "bfloat16x2"
_COMPUTE_SUFFIXES = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    SPLIT_BFLOAT16: "bf16x2",
}

Shape = list[int]


def embedding() -> ops.Custom:
    """(ids int32 [M], table [V, H], num_rows [, vocabulary int32 [2]]) -> [M, H].

    vocabulary: where the table is a part of a larger one, the id of its first row and the number of
    all rows; ids of other parts give zeros.
    """
    return _custom("glm_embedding", lambda ids, table, *_: [ids[0], table[1]])


def rms_norm() -> ops.Custom:
    """(x [M, H], weight [H], eps [1], num_rows) -> [M, H]."""
    return _custom("glm_rms_norm", lambda x, *_: x)


def rms_norm_add() -> ops.Custom:
    """(x [M, H], weight [H], eps [1], residual [M, H], num_rows) -> [M, H]."""
    return _custom("glm_rms_norm_add", lambda x, *_: x)


def residual_add() -> ops.Custom:
    """(branch [M, H], residual [M, H], num_rows) -> [M, H]."""
    return _custom("glm_residual_add", lambda branch, *_: branch)


def linear(compute_dtype: str, has_bias: bool, out_features: int) -> ops.Custom:
    """(x [M, K], tiles, num_rows [, bias [N]]) -> [M, N].

    Args:
        compute_dtype: what activations are rounded to before they are multiplied.
        has_bias: whether the bias is among the inputs (the operator sees it by their number).
    """
    return _linear("glm_linear", compute_dtype, has_bias, out_features)


def norm_linear(compute_dtype: str, has_bias: bool, out_features: int) -> ops.Custom:
    """(x [M, K], norm_weight [K], eps [1], tiles, num_rows [, num_split] [, bias [N]]) -> [M, N].

    num_split: int32 [1], with SPLIT_BFLOAT16 only: for so many of the last outputs activations are
    split; for the others they are bfloat16.
    """
    return _linear("glm_norm_linear", compute_dtype, has_bias, out_features)


def norm_gated_linear(compute_dtype: str, out_features: int) -> ops.Custom:
    """(x [M, K], norm_weight [K], eps [1], gated tiles, num_rows) -> [M, F]."""
    return _linear("glm_norm_gated_linear", compute_dtype, False, out_features)


def quantized_linear(
    weight_bits: int, activation_bits: int, has_bias: bool, out_features: int
) -> ops.Custom:
    """(x [M, K], uint8 tiles, scales, num_rows [, bias [N]]) -> [M, N].

    Args:
        weight_bits: 8, or 4 with groups that the operator sees by the scales' shape.
        activation_bits: 8 or 16, what each row's groups of 128 are rounded to.
        has_bias: whether the bias is among the inputs (the operator sees it by their number).
    """
    return _quantized("glm_linear", weight_bits, activation_bits, has_bias, out_features)


def quantized_norm_linear(
    weight_bits: int, activation_bits: int, has_bias: bool, out_features: int
) -> ops.Custom:
    """(x [M, K], norm_weight [K], eps [1], tiles, scales, num_rows [, bias [N]]) -> [M, N]."""
    return _quantized("glm_norm_linear", weight_bits, activation_bits, has_bias, out_features)


def quantized_norm_gated_linear(
    weight_bits: int, activation_bits: int, out_features: int
) -> ops.Custom:
    """(x [M, K], norm_weight [K], eps [1], gated tiles, gated scales, num_rows) -> [M, F]."""
    return _quantized("glm_norm_gated_linear", weight_bits, activation_bits, False, out_features)


def attention(num_heads: int, head_dim: int) -> ops.Custom:
    """(qkv, cos_sin, key_cache, value_cache, attn_metadata) -> [M, num_heads * head_dim].

    Writes the caches in place.
    """
    op = _custom("glm_attention", lambda qkv, *_: [qkv[0], num_heads * head_dim])
    op.add_prim_attr("output_width", num_heads * head_dim)
    # Without this, the graph compiler merges equal calls and drops those whose result is unused.
    op.add_prim_attr("side_effect_mem", True)
    return op


def gather_rows() -> ops.Custom:
    """(x [M, H], rows int32 [S], num_samples int32 [1]) -> [S, H]."""
    return _custom("glm_gather_rows", lambda x, rows, *_: [rows[0], x[1]])


def _linear(name: str, compute_dtype: str, has_bias: bool, out_features: int) -> ops.Custom:
    return _projection(f"{name}_{_COMPUTE_SUFFIXES[compute_dtype]}", has_bias, out_features)


def _quantized(
    name: str, weight_bits: int, activation_bits: int, has_bias: bool, out_features: int
) -> ops.Custom:
    return _projection(f"{name}_w{weight_bits}a{activation_bits}", has_bias, out_features)


def _projection(symbol: str, has_bias: bool, out_features: int) -> ops.Custom:
    op = _custom(symbol, lambda x, *_: [x[0], out_features])
    # PYNATIVE_MODE caches the output's shape by symbol, attributes and inputs, not by `out_shape`:
    # an attribute keeps operators of different widths apart.
    op.add_prim_attr("output_width", out_features)
    op.add_prim_attr("has_bias", has_bias)
    return op


def _custom(symbol: str, out_shape: Callable[..., Shape]) -> Any:
    load()  # chooses the instruction set before MindSpore calls the library
    return ops.Custom(
        f"{library_path()}:{symbol}",
        out_shape=out_shape,
        out_dtype=lambda *_: ms.float32,
        func_type="aot",
    )
