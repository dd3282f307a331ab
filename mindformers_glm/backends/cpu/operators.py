"""The operators of the C++ library: what each is called, what it takes, how wide its result is.

M is the number of rows the graph was built for; `num_rows` (int32 [1]) says how many of them are
real, the others are neither read nor written. Activations are float32. reference.py defines what
each computes.
"""

from dataclasses import dataclass

# Activations as the sum of two bfloat16 values: twice the products, 16 digits instead of 8.
SPLIT_BFLOAT16 = "bfloat16x2"
_COMPUTE_SUFFIXES = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    SPLIT_BFLOAT16: "bf16x2",
}


@dataclass(frozen=True)
class Operator:
    """One operator, a function of the library that MindSpore can call.

    Attributes:
        symbol: its name in the library.
        width: axis 1 of its result.
        rows_operand: which operand has as many rows as the result.
        writes_operands: whether it changes what it is given.
    """

    symbol: str
    width: int
    rows_operand: int = 0
    writes_operands: bool = False


def embedding(width: int) -> Operator:
    """(ids int32 [M], table [V, H], num_rows [, vocabulary int32 [2]]) -> [M, H].

    vocabulary: where the table is a part of a larger one, the id of its first row and the number of
    all rows; ids of other parts give zeros.
    """
    return Operator("glm_embedding", width)


def rms_norm(width: int) -> Operator:
    """(x [M, H], weight [H], eps [1], num_rows) -> [M, H]."""
    return Operator("glm_rms_norm", width)


def rms_norm_add(width: int) -> Operator:
    """(x [M, H], weight [H], eps [1], residual [M, H], num_rows) -> [M, H]."""
    return Operator("glm_rms_norm_add", width)


def residual_add(width: int) -> Operator:
    """(branch [M, H], residual [M, H], num_rows) -> [M, H]."""
    return Operator("glm_residual_add", width)


def linear(compute_dtype: str, width: int) -> Operator:
    """(x [M, K], tiles, num_rows [, bias [N]]) -> [M, N].

    Args:
        compute_dtype: what activations are rounded to before they are multiplied.
        width: N.
    """
    return Operator(f"glm_linear_{_COMPUTE_SUFFIXES[compute_dtype]}", width)


def norm_linear(compute_dtype: str, width: int) -> Operator:
    """(x [M, K], norm_weight [K], eps [1], tiles, num_rows [, num_split] [, bias [N]]) -> [M, N].

    num_split: int32 [1], with SPLIT_BFLOAT16 only: for so many of the last outputs activations are
    split; for the others they are bfloat16.
    """
    return Operator(f"glm_norm_linear_{_COMPUTE_SUFFIXES[compute_dtype]}", width)


def norm_gated_linear(compute_dtype: str, width: int) -> Operator:
    """(x [M, K], norm_weight [K], eps [1], gated tiles, num_rows) -> [M, F]."""
    return Operator(f"glm_norm_gated_linear_{_COMPUTE_SUFFIXES[compute_dtype]}", width)


def quantized_linear(weight_bits: int, activation_bits: int, width: int) -> Operator:
    """(x [M, K], uint8 tiles, scales, num_rows [, bias [N]]) -> [M, N].

    Args:
        weight_bits: 8, or 4 with groups that the operator sees by the scales' shape.
        activation_bits: 8 or 16, what each row's groups of 128 are rounded to.
        width: N.
    """
    return Operator(f"glm_linear_w{weight_bits}a{activation_bits}", width)


def quantized_norm_linear(weight_bits: int, activation_bits: int, width: int) -> Operator:
    """(x [M, K], norm_weight [K], eps [1], tiles, scales, num_rows [, bias [N]]) -> [M, N]."""
    return Operator(f"glm_norm_linear_w{weight_bits}a{activation_bits}", width)


def quantized_norm_gated_linear(weight_bits: int, activation_bits: int, width: int) -> Operator:
    """(x [M, K], norm_weight [K], eps [1], gated tiles, gated scales, num_rows) -> [M, F]."""
    return Operator(f"glm_norm_gated_linear_w{weight_bits}a{activation_bits}", width)


def attention(num_heads: int, head_dim: int) -> Operator:
    """(qkv, cos_sin, key_cache, value_cache, attn_metadata) -> [M, num_heads * head_dim].

    Writes the caches in place.
    """
    return Operator("glm_attention", num_heads * head_dim, writes_operands=True)


def gather_rows(width: int) -> Operator:
    """(x [M, H], rows int32 [S], num_samples int32 [1]) -> [S, H]."""
    return Operator("glm_gather_rows", width, rows_operand=1)
