"""The definition of every operator in NumPy: what the C++ kernels are tested against.

Arguments come in the order of the operators (fused_layers.py, paged_attention.py), with weights as
plain matrices [N, K] instead of tiles. Activations are float32 [M, width]. Rows from `num_rows` on
are not computed and come back as zeros here; the kernels leave them as they were.

bfloat16 arrays are held as float32 values that bfloat16 can represent (`round_to`).
Source of the arithmetic: transformers 4.51.3, models/glm4/modeling_glm4.py.
"""

from dataclasses import dataclass

import numpy as np

MAX_FLOAT16 = np.float32(65504)
# Columns of an activation row that share a scale, and the largest integers of 8 and 16 bits (two
# signed bytes, 256 * high + low, reach as far on both sides).
ACTIVATION_GROUP = 128
LARGEST_ACTIVATION = {8: 127, 16: 32639}
LEAST_ACTIVATION = np.float32(2.0**-100)
# Beside an int8 cache: cached tokens whose probabilities share a scale; the tokens at the beginning
# and at the end of a context whose probabilities are rounded finely; largest integers.
PROBABILITY_CHUNK, FINE_TOKENS = 64, 512
LARGEST_PROBABILITY, LARGEST_FINE_PROBABILITY = 255, 32639
LEAST_WEIGHT_SCALE = np.float32(2.0**-23)


@dataclass(frozen=True)
class Rows:
    """What the attention operator reads from the metadata vector (backends/cpu/attn_metadata.py).

    Attributes:
        positions: [num_rows] position of each row in its sequence.
        slot_mapping: [num_rows] cache slot of each row's key and value.
        query_start: [num_seqs + 1] first row of each sequence.
        block_tables: [num_seqs, max_blocks_per_seq] cache blocks in logical order.
    """

    positions: np.ndarray
    slot_mapping: np.ndarray
    query_start: np.ndarray
    block_tables: np.ndarray


def round_to(x: np.ndarray, dtype: str, saturate: bool = False) -> np.ndarray:
    """Round float32 values to what `dtype` can hold, ties to even; NaN stays NaN.

    Args:
        dtype: "bfloat16x2" is the sum of a bfloat16 and of what it lost, also as bfloat16.
        saturate: limit float16 to its largest finite value instead of infinity.
    """
    x = np.asarray(x, np.float32)
    if dtype == "float16":
        limited = np.clip(x, -MAX_FLOAT16, MAX_FLOAT16) if saturate else x
        with np.errstate(over="ignore"):
            return limited.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        return bfloat16_to_float32(float32_to_bfloat16(x))
    if dtype == "bfloat16x2":
        rounded = round_to(x, "bfloat16")
        return rounded + round_to(x - rounded, "bfloat16")
    return x


def float32_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper 16 bits of each float32, rounded to nearest even, as uint16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = bits >> np.uint32(16) | np.uint32(0x40)
    return np.where(np.isnan(x), quiet_nan, rounded).astype(np.uint16)


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """uint16 bfloat16 patterns as float32 values."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def embedding(ids: np.ndarray, table: np.ndarray, num_rows: int, first_id: int = 0) -> np.ndarray:
    """Rows of table [V, H] as float32 [M, H]; zeros for ids outside [first_id, first_id + V)."""
    out = np.zeros((len(ids), table.shape[1]), np.float32)
    for row, index in enumerate(ids[:num_rows] - first_id):
        if 0 <= index < len(table):
            out[row] = table[index]
    return out


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, num_rows: int) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Glm4RMSNorm)."""
    out = np.zeros_like(x)
    rows = x[:num_rows].astype(np.float64)
    variance = np.mean(rows * rows, axis=-1, keepdims=True)
    out[:num_rows] = rows / np.sqrt(variance + eps) * weight
    return out


def round_columns(x: np.ndarray, steps: np.ndarray, num_rows: int) -> np.ndarray:
    """int8 by a scale and an offset of each column (steps [2, K]), and back to floats."""
    out, (scales, offsets) = np.zeros_like(x), steps
    integers = np.clip(np.rint(x[:num_rows] / scales + offsets), -128, 127)
    out[:num_rows] = (integers - offsets) * scales
    return out


def norm_before(x: np.ndarray, weight: np.ndarray, eps: float, num_rows: int) -> np.ndarray:
    """The norm in front of a linear layer: rms_norm, plus the second row of `weight` if it has one.

    Quantizing tools that shift activations leave such biases (anti-outlier of msModelSlim).
    """
    if weight.ndim == 1:
        return rms_norm(x, weight, eps, num_rows)
    out = rms_norm(x, weight[0], eps, num_rows)
    out[:num_rows] += weight[1]
    return out


def rms_norm_add(
    x: np.ndarray, weight: np.ndarray, eps: float, residual: np.ndarray, num_rows: int
) -> np.ndarray:
    """residual + rms_norm(x): GLM-4-0414 norms a branch's output before it is added."""
    out = rms_norm(x, weight, eps, num_rows)
    out[:num_rows] += residual[:num_rows]
    return out


def residual_add(branch: np.ndarray, residual: np.ndarray, num_rows: int) -> np.ndarray:
    """residual + branch: GLM-4 and ChatGLM norm only what goes into a branch (GlmDecoderLayer)."""
    out = np.zeros_like(branch)
    out[:num_rows] = residual[:num_rows] + branch[:num_rows]
    return out


def linear(
    x: np.ndarray,
    weight: np.ndarray,
    num_rows: int,
    bias: np.ndarray | None = None,
    compute_dtype: str = "float32",
) -> np.ndarray:
    """x rounded to `compute_dtype`, times weight^T, plus bias; sums in higher precision."""
    out = np.zeros((len(x), len(weight)), np.float32)
    rounded = round_to(x[:num_rows], compute_dtype, saturate=True).astype(np.float64)
    product = rounded @ weight.astype(np.float64).T
    out[:num_rows] = product if bias is None else product + bias
    return out


def norm_linear(
    x: np.ndarray,
    norm_weight: np.ndarray,
    eps: float,
    weight: np.ndarray,
    num_rows: int,
    bias: np.ndarray | None = None,
    compute_dtype: str = "float32",
    num_split: int = 0,
) -> np.ndarray:
    """linear(rms_norm(x)).

    Args:
        num_split: for so many of the last outputs activations are the sum of two bfloat16 values.
            Outputs come in tiles of 16; the first of these outputs has its whole tile with it.
    """
    normed = norm_before(x, norm_weight, eps, num_rows)
    out = linear(normed, weight, num_rows, bias, compute_dtype)
    if num_split > 0:
        first = (len(weight) - num_split) // 16 * 16
        split = linear(normed, weight, num_rows, bias, f"{compute_dtype}x2")
        out[:, first:] = split[:, first:]
    return out


def norm_gated_linear(
    x: np.ndarray,
    norm_weight: np.ndarray,
    eps: float,
    weight: np.ndarray,
    num_rows: int,
    compute_dtype: str = "float32",
) -> np.ndarray:
    """silu(gate) * up, where weight [2F, K] holds F gate rows, then F up rows (Glm4MLP)."""
    return _gate(norm_linear(x, norm_weight, eps, weight, num_rows, None, compute_dtype))


def _gate(both: np.ndarray) -> np.ndarray:
    gate, up = np.split(both.astype(np.float64), 2, axis=-1)
    with np.errstate(over="ignore"):
        return (gate / (1 + np.exp(-gate)) * up).astype(np.float32)


def quantize_weight(
    weight: np.ndarray, bits: int, group_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Round to nearest without zero points: integers [N, K] and scales [N, groups].

    8 bits, where a group is a row: scale = absmax / 127, as msModelSlim 26.1 computes it for W8A16.
    4 bits: the element of the largest magnitude becomes -8, so that all 16 integers are used; the
    scale is negative where that element is positive (llama.cpp's Q4_0 does the same). In both,
    q = rint(w / scale), ties to even, in float32; a scale below 2^-23 becomes 2^-23.
    """
    n, k = weight.shape
    size = k if bits == 8 else group_size
    groups = -(-k // size)
    padded = np.zeros((n, groups * size), np.float32)
    padded[:, :k] = weight
    padded = padded.reshape(n, groups, size)
    least, most = padded.min(axis=-1), padded.max(axis=-1)
    if bits == 8:
        scales = np.maximum(-least, most) / np.float32(127)
    else:
        scales = np.where(-least >= most, least, most) / np.float32(-8)
    scales = np.where(np.abs(scales) < LEAST_WEIGHT_SCALE, LEAST_WEIGHT_SCALE, scales)
    q = np.minimum(np.rint(padded / scales[:, :, None]), 2 ** (bits - 1) - 1).astype(np.int32)
    return q.reshape(n, -1)[:, :k], scales


def quantize_activation(
    x: np.ndarray, bits: int, group_size: int = ACTIVATION_GROUP
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric integers [M, K] of 8 or 16 bits, and scales [M, groups of columns].

    q = rint(x * (largest / absmax)), scale = absmax / largest in float32. One scale for a group,
    not for a row: heavy-tailed rows would lose small values. A group below 2^-100 counts as zero.
    """
    m, k = x.shape
    groups = -(-k // group_size)
    padded = np.zeros((m, groups * group_size), np.float32)
    padded[:, :k] = x
    padded = padded.reshape(m, groups, group_size)
    absmax = np.abs(padded).max(axis=-1)
    absmax = np.where(absmax < LEAST_ACTIVATION, np.float32(0), absmax)
    largest = np.float32(LARGEST_ACTIVATION[bits])
    with np.errstate(divide="ignore"):
        inverse = np.where(absmax > 0, largest / absmax, np.float32(0))
    q = np.rint(padded * inverse[:, :, None]).astype(np.int32)
    return q.reshape(m, -1)[:, :k], absmax / largest


def quantized_linear(
    x: np.ndarray,
    q_weight: np.ndarray,
    scales: np.ndarray,
    num_rows: int,
    bias: np.ndarray | None = None,
    activation_bits: int = 16,
    group_size: int = 0,
    zeros: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """quantize_activation(x[:, order]) times weight^T, plus bias; weight = (q - zeros) * scales.

    Args:
        q_weight, scales: as from `quantize_weight`, or of a checkpoint.
        group_size: columns that share a weight scale, and so do activations; 0 for a whole row of
            weights and ACTIVATION_GROUP activations.
        zeros: [N, groups] as scales, in the unit of q_weight; None: all are 0.
        order: [K], the column of x that each column of weights belongs to; None: the same.
    """
    x_group = group_size or ACTIVATION_GROUP
    x = x if order is None else x[:, order]
    q, x_scales = quantize_activation(x, activation_bits, x_group)
    k = x.shape[1]
    rounded = q * np.repeat(x_scales.astype(np.float64), x_group, axis=1)[:, :k]
    if zeros is not None:
        q_weight = q_weight - np.repeat(zeros, group_size or k, axis=1)[:, :k]
    weight = q_weight * np.repeat(scales.astype(np.float64), group_size or k, axis=1)[:, :k]
    return linear(rounded, weight, num_rows, bias)


def quantized_norm_linear(
    x: np.ndarray,
    norm_weight: np.ndarray,
    eps: float,
    q_weight: np.ndarray,
    scales: np.ndarray,
    num_rows: int,
    bias: np.ndarray | None = None,
    activation_bits: int = 16,
    group_size: int = 0,
    zeros: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """quantized_linear(rms_norm(x))."""
    normed = norm_before(x, norm_weight, eps, num_rows)
    return quantized_linear(
        normed, q_weight, scales, num_rows, bias, activation_bits, group_size, zeros, order
    )


def quantized_norm_gated_linear(
    x: np.ndarray,
    norm_weight: np.ndarray,
    eps: float,
    q_weight: np.ndarray,
    scales: np.ndarray,
    num_rows: int,
    activation_bits: int = 16,
    group_size: int = 0,
    zeros: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """silu(gate) * up, rows and scales of the gate first."""
    settings = (activation_bits, group_size, zeros, order)
    return _gate(
        quantized_norm_linear(x, norm_weight, eps, q_weight, scales, num_rows, None, *settings)
    )


def quantize_tokens(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers [M, K] and a scale [M] for each row, as a card's DynamicQuant.

    scale = absmax / 127, q = rint(x / scale) in float32. A row below 2^-100 counts as zero; one
    with an infinity or a NaN has no scale.
    """
    absmax = np.abs(x).max(axis=-1)
    has_values = absmax >= LEAST_ACTIVATION
    scales = np.where(has_values, absmax / np.float32(127), np.float32(0))
    steps = np.where(has_values, scales, np.float32(1))
    is_finite = np.isfinite(x).all(axis=-1)
    with np.errstate(invalid="ignore"):
        q = np.rint(x / steps[:, None])
    q = np.where((has_values & is_finite)[:, None], q, 0).astype(np.int32)
    return q, np.where(is_finite, scales, np.float32(np.nan)).astype(np.float32)


def quantize_static(x: np.ndarray, scale: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Integers [M, K] by one scale and offset; and 1 for each row [M], NaN for one that has none.

    q = rint(x / scale + offset) in float32, ties to even, limited to -128 and 127.
    """
    is_finite = np.isfinite(x).all(axis=-1)
    with np.errstate(over="ignore"):
        q = np.rint(x / np.float32(scale) + np.float32(offset))
    q = np.where(is_finite[:, None], np.clip(q, -128, 127), 0).astype(np.int32)
    return q, np.where(is_finite, np.float32(1), np.float32(np.nan))


@dataclass(frozen=True)
class StaticProduct:
    """What a product of statically quantized activations has besides its integers.

    Attributes:
        input_scale, input_offset: of activations.
        deq_scale: float32 [N]; quant_bias: int32 [N].
    """

    input_scale: float
    input_offset: float
    deq_scale: np.ndarray
    quant_bias: np.ndarray


def token_linear(
    x: np.ndarray,
    q_weight: np.ndarray,
    scales: np.ndarray,
    num_rows: int,
    bias: np.ndarray | None = None,
    group_size: int = 0,
) -> np.ndarray:
    """float(q_x q_weight^T) * (weight scale * row's scale) in float32, plus bias.

    Where groups of columns have scales, their sums are scaled and added, and then multiplied by
    the row's.

    Args:
        q_weight, scales: as from `quantize_weight`.
        group_size: 0 for whole rows.
    """
    out = np.zeros((len(x), len(q_weight)), np.float32)
    q, x_scales = quantize_tokens(x[:num_rows])
    if group_size == 0:
        sums = _int_product(q, q_weight).astype(np.float32)
        product = sums * (scales[:, 0] * x_scales[:, None])
    else:
        groups = np.arange(q.shape[1]) // group_size
        weight = q_weight * scales[:, groups].astype(np.float64)
        product = (q @ weight.T * x_scales[:, None]).astype(np.float32)
    out[:num_rows] = product if bias is None else product + bias
    return out


def static_linear(
    x: np.ndarray,
    q_weight: np.ndarray,
    static: StaticProduct,
    num_rows: int,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """float(q_x q_weight^T + quant_bias) * deq_scale in float32, plus bias."""
    out = np.zeros((len(x), len(q_weight)), np.float32)
    q, factors = quantize_static(x[:num_rows], static.input_scale, static.input_offset)
    sums = (_int_product(q, q_weight) + static.quant_bias).astype(np.float32)
    product = sums * static.deq_scale * factors[:, None]
    out[:num_rows] = product if bias is None else product + bias
    return out


def mixed_linear(
    x: np.ndarray,
    q_weight: np.ndarray,
    scales: np.ndarray,
    static: StaticProduct,
    is_prompt: np.ndarray,
    num_rows: int,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of prompts as `token_linear` with the bias, others as `static_linear` without."""
    tokens = token_linear(x, q_weight, scales, num_rows, bias)
    return np.where(is_prompt[:, None] != 0, tokens, static_linear(x, q_weight, static, num_rows))


def _int_product(q: np.ndarray, q_weight: np.ndarray) -> np.ndarray:
    """Exact in float64, whose products are fast, as int32."""
    return np.rint(q.astype(np.float64) @ q_weight.astype(np.float64).T).astype(np.int32)


def rotate(heads: np.ndarray, cos_sin: np.ndarray) -> np.ndarray:
    """Interleaved, partial RoPE: pairs (2i, 2i + 1) of the first rotary_dim elements.

    Args:
        heads: [M, num_heads, head_dim].
        cos_sin: [M, rotary_dim], each row's cosines, then its sines.
    """
    cos, sin = np.split(cos_sin[:, None, :].astype(np.float64), 2, axis=-1)
    rotary_dim = cos_sin.shape[-1]
    even, odd = heads[..., 0:rotary_dim:2], heads[..., 1:rotary_dim:2]
    out = heads.astype(np.float32)
    out[..., 0:rotary_dim:2] = even * cos - odd * sin
    out[..., 1:rotary_dim:2] = odd * cos + even * sin
    return out


def attention(
    qkv: np.ndarray,
    cos_sin: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    rows: Rows,
    num_heads: int,
    cache_dtype: str = "float32",
) -> np.ndarray:
    """RoPE, cache write, then causal attention of every row over its sequence's cached tokens.

    Args:
        qkv: [M, (num_heads + 2 * num_kv_heads) * head_dim].
        cos_sin: [num_positions, rotary_dim].
        key_cache, value_cache: float32 [num_blocks, num_kv_heads, block_size, head_dim], written.
        cache_dtype: what keys and values are rounded to; float16 saturates.
    Returns:
        [M, num_heads * head_dim].
    """
    _, num_kv_heads, block_size, _ = key_cache.shape
    q, k, v = _rotated_heads(qkv, cos_sin, rows, num_heads, num_kv_heads)
    blocks, offsets = np.divmod(rows.slot_mapping, block_size)
    key_cache[blocks, :, offsets] = round_to(k, cache_dtype, saturate=True)
    value_cache[blocks, :, offsets] = round_to(v, cache_dtype, saturate=True)
    return _attend(q, key_cache, value_cache, rows, len(qkv))


def _rotated_heads(
    qkv: np.ndarray, cos_sin: np.ndarray, rows: Rows, num_heads: int, num_kv_heads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries and keys, rotated, and values: [num_rows, heads, head_dim]."""
    num_rows = len(rows.positions)
    heads = qkv[:num_rows].reshape(num_rows, num_heads + 2 * num_kv_heads, -1)
    q, k, v = np.split(heads, [num_heads, num_heads + num_kv_heads], axis=1)
    row_cos_sin = cos_sin[rows.positions]
    return rotate(q, row_cos_sin), rotate(k, row_cos_sin), v


def _attend(
    q: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    rows: Rows,
    num_out_rows: int,
    value_scales: np.ndarray | None = None,
    is_renormalized: bool = False,
) -> np.ndarray:
    """Causal attention of every row over its sequence's cached tokens.

    Args:
        q: [num_rows, num_heads, head_dim].
        value_scales: [num_blocks, num_kv_heads, block_size] by which probabilities are multiplied
            before they are rounded (`round_probabilities`); None: they are not rounded.
        is_renormalized: rounded ones are divided by their sum.
    """
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    num_heads = q.shape[1]
    out = np.zeros((num_out_rows, num_heads * head_dim), np.float32)
    for seq, table in enumerate(rows.block_tables):
        for row in range(rows.query_start[seq], rows.query_start[seq + 1]):
            blocks, offsets = np.divmod(np.arange(rows.positions[row] + 1), block_size)
            # [num_tokens, num_kv_heads, head_dim], each KV head repeated for its query heads
            keys = key_cache[table[blocks], :, offsets].astype(np.float64)
            values = value_cache[table[blocks], :, offsets].astype(np.float64)
            keys = np.repeat(keys, num_heads // num_kv_heads, axis=1)
            values = np.repeat(values, num_heads // num_kv_heads, axis=1)
            scores = np.einsum("hd,thd->ht", q[row], keys) * head_dim**-0.5
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            if value_scales is not None:
                scales = value_scales[table[blocks], :, offsets].T
                weights = round_probabilities(
                    weights, np.repeat(scales, num_heads // num_kv_heads, axis=0)
                )
                if is_renormalized:
                    weights /= weights.sum(axis=-1, keepdims=True)
            out[row] = np.einsum("ht,thd->hd", weights, values).ravel()
    return out


@dataclass(frozen=True)
class Int8Cache:
    """Keys or values as integers from -128 to 127.

    Attributes:
        integers: [num_blocks, num_kv_heads, block_size, head_dim].
        scales: float32 [num_blocks, num_kv_heads, block_size], of each head of each token.
        channels: scale and offset [num_kv_heads, head_dim], which are given; None: `scales` are.
    """

    integers: np.ndarray
    scales: np.ndarray
    channels: tuple[np.ndarray, np.ndarray] | None = None

    def store(self, blocks: np.ndarray, offsets: np.ndarray, x: np.ndarray) -> None:
        """Round heads [tokens, num_kv_heads, head_dim] and keep them.

        With scales of their own: rint(x * (127 / absmax)), in float32, as activations are rounded.
        With channels: clip(rint(x / scale + offset)), as msModelSlim's C8 has it.
        """
        if self.channels is None:
            x_rows = x.reshape(-1, x.shape[-1])
            q, scales = quantize_activation(x_rows, 8, x.shape[-1])
            self.integers[blocks, :, offsets] = q.reshape(x.shape)
            self.scales[blocks, :, offsets] = scales.reshape(x.shape[:2])
        else:
            scale, offset = self.channels
            q = np.clip(np.rint(x / scale + offset), -128, 127)
            self.integers[blocks, :, offsets] = q

    def dequantized(self) -> np.ndarray:
        """float64 [num_blocks, num_kv_heads, block_size, head_dim]."""
        if self.channels is None:
            return self.integers * self.scales[..., None].astype(np.float64)
        scale, offset = (part[None, :, None].astype(np.float64) for part in self.channels)
        return (self.integers - offset) * scale


def attention_int8(
    qkv: np.ndarray,
    cos_sin: np.ndarray,
    keys: Int8Cache,
    values: Int8Cache,
    rows: Rows,
    num_heads: int,
    *,
    is_exact: bool = False,
) -> np.ndarray:
    """The same on caches of integers.

    A query, times the scales of the keys' channels, is rounded to 16 bits, by its largest element;
    probabilities as `round_probabilities` says. Where values have channels, those that were rounded
    are divided by their sum.

    Args:
        is_exact: queries and probabilities are not rounded.
    """
    num_kv_heads, block_size = keys.integers.shape[1:3]
    q, k, v = _rotated_heads(qkv, cos_sin, rows, num_heads, num_kv_heads)
    blocks, offsets = np.divmod(rows.slot_mapping, block_size)
    keys.store(blocks, offsets, k)
    values.store(blocks, offsets, v)
    if is_exact:
        return _attend(q, keys.dequantized(), values.dequantized(), rows, len(qkv))
    scale = np.ones(q.shape[1:])
    if keys.channels is not None:
        scale = np.repeat(keys.channels[0], num_heads // num_kv_heads, axis=0)
    flat = (q * scale * np.float32(q.shape[-1] ** -0.5)).astype(np.float32).reshape(-1, q.shape[-1])
    q16, q_scales = quantize_activation(flat, 16, q.shape[-1])
    rounded = (q16 * q_scales.astype(np.float64)).reshape(q.shape) / scale * q.shape[-1] ** 0.5
    has_channels = values.channels is not None
    value_scales = np.ones_like(values.scales) if has_channels else values.scales
    both = keys.dequantized(), values.dequantized()
    return _attend(rounded, *both, rows, len(qkv), value_scales, has_channels)


def round_probabilities(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Each query's, of PROBABILITY_CHUNK tokens each, times its value's scale, to integers.

    Chunks are fine that begin in the first FINE_TOKENS or in as many before the query, the last
    token.

    Args:
        weights, scales: [num_heads, num_tokens]; the result is without the scales again.
    """
    out = np.zeros_like(weights)
    position = weights.shape[1] - 1
    for begin in range(0, weights.shape[1], PROBABILITY_CHUNK):
        is_fine = begin < FINE_TOKENS or position - begin < FINE_TOKENS
        largest = LARGEST_FINE_PROBABILITY if is_fine else LARGEST_PROBABILITY
        part = np.s_[:, begin : begin + PROBABILITY_CHUNK]
        scaled = weights[part] * scales[part]
        step = scaled.max(axis=1, keepdims=True) / largest
        safe = np.where(step > 0, step, 1)
        of_scale = np.where(scales[part] > 0, scales[part], 1)
        out[part] = np.rint(scaled / safe) * step / of_scale
    return out


def gather_rows(x: np.ndarray, rows: np.ndarray, num_samples: int) -> np.ndarray:
    """x[rows] for the first `num_samples` entries of rows."""
    out = np.zeros((len(rows), x.shape[1]), np.float32)
    out[:num_samples] = x[rows[:num_samples]]
    return out
