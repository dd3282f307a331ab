"""What Ascend's operators compute, in NumPy, and what they refuse.

MindSpore has these operators for Ascend only. Each reference follows the documentation of MindSpore
2.7.1 for the call that MindSpore Transformers 1.7.0 makes, and checks what it is given as strictly
as the operator would: a wrong layout, type, length, slot or mask is a ContractError. The card takes
16-bit floats; float32 is allowed here, so that numbers can be compared with Hugging Face's.
"""

from typing import Any

import numpy as np

_MASK_TILE = 128
_MASKED = -10000.0
_UPPER = np.triu(np.ones((_MASK_TILE, _MASK_TILE), bool), 1)
_INTERLEAVED = 3  # cos_format: pairs are neighbours


class ContractError(AssertionError):
    """The operator would refuse this call, or compute something else than was meant."""


def require(is_so: Any, what: str) -> None:
    """Raise ContractError unless `is_so`."""
    if not is_so:
        raise ContractError(what)


def _require_int32(**arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        require(
            array.dtype == np.int32 and array.ndim == 1,
            f"{name} must be int32 of one axis, it is {array.dtype} {array.shape}",
        )


def check_lengths(
    batch_valid_length: np.ndarray, context_lens_tensor: np.ndarray, q_seq_lens: np.ndarray
) -> None:
    """What upstream's `construct` is told of the sequences: tokens in all, cached ones, new ones.

    Source: mindformers 1.7.0, models/glm4/modeling_glm4_infer.py and gpt_model.py.
    """
    _require_int32(
        batch_valid_length=batch_valid_length,
        context_lens_tensor=context_lens_tensor,
        q_seq_lens=q_seq_lens,
    )
    require(
        len(batch_valid_length) == len(context_lens_tensor) == len(q_seq_lens),
        "not one entry for each sequence",
    )
    require(
        (batch_valid_length == context_lens_tensor + q_seq_lens).all(),
        f"{context_lens_tensor.tolist()} cached and {q_seq_lens.tolist()} new tokens are not "
        f"{batch_valid_length.tolist()}",
    )


def reshape_and_cache(
    key: np.ndarray,
    value: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    slot_mapping: np.ndarray,
) -> None:
    """Write K and V of each row to its slot.

    Args:
        key, value: [num_rows, kv_heads * head_dim].
        key_cache, value_cache: [num_blocks, block_size, kv_heads, head_dim], written in place.
        slot_mapping: int32 [num_rows]; -1 writes nothing.
    Source: `mindspore.ops.auto_generate.ReshapeAndCache`.
    """
    _require_int32(slot_mapping=slot_mapping)
    require(key_cache.ndim == 4, f"key_cache must have 4 axes, it has {key_cache.ndim}")
    require(key_cache.shape == value_cache.shape, "key_cache and value_cache differ in shape")
    num_blocks, block_size, num_heads, head_dim = key_cache.shape
    shape = (len(slot_mapping), num_heads * head_dim)
    require(key.shape == shape, f"key is {key.shape}, for these slots and heads it must be {shape}")
    require(value.shape == shape, f"value is {value.shape}, it must be {shape}")
    types = {array.dtype for array in (key, value, key_cache, value_cache)}
    require(len(types) == 1, f"key, value and caches have different types: {types}")
    last = num_blocks * block_size - 1
    require((slot_mapping >= -1).all() and (slot_mapping <= last).all(), f"a slot beyond {last}")
    is_written = slot_mapping >= 0
    slots = slot_mapping[is_written]
    require(len(np.unique(slots)) == len(slots), "two rows are written to one slot")
    for cache, rows in ((key_cache, key), (value_cache, value)):
        cache.reshape(-1, num_heads, head_dim)[slots] = rows[is_written].reshape(
            -1, num_heads, head_dim
        )


def apply_rotary_pos_emb(
    query: np.ndarray,
    key: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    lengths: np.ndarray,
    *,
    cos_format: int,
    is_prefill: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate neighbouring pairs of each head.

    Args:
        query, key: [num_rows, heads * head_dim].
        cos, sin: [positions, head_dim] of the whole table for prompts, whose rows are positions
            0, 1, ... of each sequence; [num_rows, head_dim] otherwise.
        lengths: int32, of the sequences.
        is_prefill: which of the two it is. The operator tells it from the lengths, which can be
            read in both ways, so the test has to say.
    Source: `mindspore.ops.ApplyRotaryPosEmb`; mindformers 1.7.0 rotary_pos_embedding.py.
    """
    _require_int32(lengths=lengths)
    require(
        cos_format == _INTERLEAVED, f"cos_format {cos_format} is not that of GLM, {_INTERLEAVED}"
    )
    require(query.ndim == key.ndim == cos.ndim == 2, "query, key and cos must have 2 axes")
    require(len(query) == len(key), f"{len(query)} rows of queries and {len(key)} of keys")
    require(cos.shape == sin.shape, "cos and sin differ in shape")
    head_dim = cos.shape[1]
    require(query.shape[1] % head_dim == 0, f"query of {query.shape[1]} has no heads of {head_dim}")
    require(key.shape[1] % head_dim == 0, f"key of {key.shape[1]} has no heads of {head_dim}")
    types = {array.dtype for array in (query, key, cos, sin)}
    require(len(types) == 1, f"query, key, cos and sin have different types: {types}")
    if is_prefill:
        require(lengths.sum() == len(query), f"{len(query)} rows, sequences of {lengths.tolist()}")
        require(lengths.max() <= len(cos), f"{lengths.max()} positions, the table has {len(cos)}")
        positions = np.concatenate([np.arange(length) for length in lengths])
        cos, sin = cos[positions], sin[positions]
    require(len(cos) == len(query), f"{len(cos)} rows of cos for {len(query)} rows of queries")
    return tuple(_rotate(x, cos, sin, head_dim) for x in (query, key))  # type: ignore[return-value]


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, head_dim: int) -> np.ndarray:
    heads = x.reshape(len(x), -1, head_dim).astype(np.float32)
    turned = np.stack([-heads[..., 1::2], heads[..., 0::2]], axis=-1).reshape(heads.shape)
    cosines, sines = cos[:, None].astype(np.float32), sin[:, None].astype(np.float32)
    return (heads * cosines + turned * sines).reshape(x.shape).astype(x.dtype)


def flash_attention_score(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: np.ndarray,
    actual_seq_qlen: np.ndarray,
    actual_seq_kvlen: np.ndarray,
    *,
    head_num: int,
    scale_value: float,
    input_layout: str,
    sparse_mode: int,
) -> np.ndarray:
    """Causal attention of whole prompts.

    Args:
        query, key, value: [num_rows, heads * head_dim], sequences behind each other (layout TH).
        attn_mask: [128, 128], whose upper triangle is masked: the operator lays it over each tile
            on the diagonal.
        actual_seq_qlen, actual_seq_kvlen: int32, of each sequence; not cumulated.
    Source: `mindspore.ops.operations.nn_ops.FlashAttentionScore`.
    """
    _require_int32(actual_seq_qlen=actual_seq_qlen, actual_seq_kvlen=actual_seq_kvlen)
    require(input_layout == "TH", f"input_layout must be TH, it is {input_layout}")
    require(sparse_mode == 0, f"sparse_mode must be 0, it is {sparse_mode}")
    require(attn_mask.shape == _UPPER.shape, f"attn_mask is {attn_mask.shape}")
    _require_types(query, key=key, value=value, attn_mask=attn_mask)
    require(((attn_mask != 0) == _UPPER).all(), "attn_mask is not the upper triangle")
    _require_hiding(attn_mask)
    require((actual_seq_qlen == actual_seq_kvlen).all(), "prompts begin with their first token")
    require(
        actual_seq_qlen.sum() == len(query) == len(key) == len(value),
        f"{len(query)} rows, sequences of {actual_seq_qlen.tolist()}",
    )
    require(query.shape[1] % head_num == 0, f"query of {query.shape[1]} for {head_num} heads")
    head_dim = query.shape[1] // head_num
    require(head_dim % 16 == 0 and head_dim <= 512, f"heads of {head_dim}, not of 16, 32 .. 512")
    _require_scale(scale_value, head_dim)
    q, k, v = (x.reshape(len(x), -1, head_dim) for x in (query, key, value))
    require(k.shape == v.shape and head_num % k.shape[1] == 0, f"key {key.shape} {value.shape}")
    out, start = np.empty_like(q), 0
    for length in actual_seq_qlen:
        rows = slice(start, start + length)
        is_visible = np.tril(np.ones((length, length), bool))
        out[rows] = _attend(q[rows], k[rows], v[rows], scale_value, is_visible)
        start += length
    return out.reshape(query.shape)


def paged_attention(
    query: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    block_tables: np.ndarray,
    context_lens: np.ndarray,
    attn_mask: np.ndarray,
    q_seq_lens: np.ndarray,
    *,
    head_num: int,
    kv_head_num: int,
    scale_value: float,
) -> np.ndarray:
    """Attention of the last rows of each sequence over its cached tokens.

    Args:
        query: [num_rows, heads * head_dim].
        key_cache, value_cache: [num_blocks, block_size, kv_heads, head_dim].
        block_tables: int32 [num_seqs, most blocks].
        context_lens: int32 [num_seqs], cached tokens, those of this step among them.
        attn_mask: [num_rows, at least the longest context] where a sequence has several rows; not
            read otherwise.
        q_seq_lens: int32 [num_seqs], rows of each sequence.
    Source: `mindspore.ops.auto_generate.PagedAttention`, with the mask as vLLM-MindSpore 0.5.1
        makes it for chunked prefill.
    """
    _require_int32(context_lens=context_lens, q_seq_lens=q_seq_lens)
    require(
        block_tables.dtype == np.int32 and block_tables.ndim == 2,
        f"block_tables must be int32 of 2 axes, it is {block_tables.dtype} {block_tables.shape}",
    )
    require(key_cache.ndim == 4, f"key_cache must have 4 axes, it has {key_cache.ndim}")
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    require(key_cache.shape == value_cache.shape, "key_cache and value_cache differ in shape")
    _require_types(query, key_cache=key_cache, value_cache=value_cache)
    require(num_kv_heads == kv_head_num, f"{kv_head_num} KV heads, the cache has {num_kv_heads}")
    require(query.shape[1] == head_num * head_dim, f"query of {query.shape[1]}")
    require(head_num % kv_head_num == 0, f"{head_num} heads share {kv_head_num} KV heads")
    _require_scale(scale_value, head_dim)
    require(
        len(block_tables) == len(context_lens) == len(q_seq_lens), "not one entry for each sequence"
    )
    require(q_seq_lens.sum() == len(query), f"{len(query)} rows, {q_seq_lens.tolist()}")
    require((q_seq_lens >= 1).all() and (q_seq_lens <= context_lens).all(), "rows beyond a context")
    q = query.reshape(len(query), head_num, head_dim)
    out, start = np.empty_like(q), 0
    for table, length, num_rows in zip(block_tables, context_lens, q_seq_lens, strict=True):
        blocks = table[: -(-length // block_size)]
        require(len(blocks) * block_size >= length, f"a table of {len(table)} for {length} tokens")
        require(((blocks >= 0) & (blocks < num_blocks)).all(), f"block {blocks.max()}")
        k, v = (
            cache[blocks].reshape(-1, num_kv_heads, head_dim)[:length]
            for cache in (key_cache, value_cache)
        )
        rows = slice(start, start + num_rows)
        last_seen = np.arange(length - num_rows, length)
        is_visible = np.arange(length)[None] <= last_seen[:, None]
        if q_seq_lens.max() > 1:
            _check_rows_of_mask(attn_mask, query, rows, is_visible)
        out[rows] = _attend(q[rows], k, v, scale_value, is_visible)
        start += num_rows
    return out.reshape(query.shape)


def _check_rows_of_mask(
    attn_mask: np.ndarray, query: np.ndarray, rows: slice, is_visible: np.ndarray
) -> None:
    _require_types(query, attn_mask=attn_mask)
    length = is_visible.shape[1]
    require(
        attn_mask.ndim == 2 and len(attn_mask) == len(query) and attn_mask.shape[1] >= length,
        f"attn_mask is {attn_mask.shape}, for {len(query)} rows and {length} tokens",
    )
    require(((attn_mask[rows, :length] == 0) == is_visible).all(), "attn_mask is not causal")
    _require_hiding(attn_mask)


def _require_hiding(attn_mask: np.ndarray) -> None:
    """A mask is added to the scores; 1.0 hides in FlashAttentionScore's bfloat16 alone.

    Source: mindformers 1.7.0, parallel_core/inference/transformer/lower_triangular_mask.py.
    """
    hidden = attn_mask[attn_mask != 0]
    require((hidden == _MASKED).all(), f"attn_mask adds {hidden.max(initial=_MASKED)} to hide")


def rms_norm(x: np.ndarray, gamma: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """x / rms(x) * gamma and 1 / rms(x), over the last axis.

    Source: `mindspore.ops.operations.RmsNorm`.
    """
    require(0 < epsilon <= 1, f"epsilon {epsilon} is not in (0, 1]")
    require(gamma.shape == x.shape[-1:], f"gamma is {gamma.shape}, x {x.shape}")
    require(gamma.dtype == x.dtype, f"gamma is {gamma.dtype}, x {x.dtype}")
    wide = x.astype(np.float32)
    scale = 1 / np.sqrt((wide * wide).mean(-1, keepdims=True) + np.float32(epsilon))
    return (wide * scale * gamma.astype(np.float32)).astype(x.dtype), scale


# Of products by QuantBatchMatmul: types of the scale and of a token's scale, by the output's.
# float32 stands for bfloat16, which NumPy has not.
_PRODUCT_TYPES = {
    ("float32", False): (np.float32,),
    ("float32", True): (np.float32,),
    ("float16", False): (np.int64,),
    ("float16", True): (np.float32,),
}
_READ_SCALE_BITS = np.uint32(0xFFFFE000)
_LARGEST_LAST_AXIS = 65535


def quant_v2(
    x: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    *,
    sqrt_mode: bool,
    rounding_mode: str,
    dst_type: str,
) -> np.ndarray:
    """rint(x * scale + offset) as int8.

    Args:
        scale, offset: [1] or [columns], in the type of x.
    Source: `mindspore.ops.auto_generate.QuantV2`; CANN, aclnnAscendQuant, which has scales of one
        element and wants one shape of both.
    """
    require(x.dtype in (np.float16, np.float32), f"x is {x.dtype}")
    _require_types(x, scale=scale, offset=offset)
    require(scale.ndim == 1 and scale.shape in ((1,), x.shape[-1:]), f"scale is {scale.shape}")
    require(offset.shape == scale.shape, f"offset is {offset.shape}, scale {scale.shape}")
    require(not sqrt_mode, "sqrt_mode is not supported")
    require(rounding_mode == "ROUND", f"rounding_mode {rounding_mode}")
    require(dst_type == "Int8", f"dst_type {dst_type}")
    steps = np.rint(x.astype(np.float32) * scale.astype(np.float32) + offset.astype(np.float32))
    return np.clip(steps, -128, 127).astype(np.int8)


def dynamic_quant_ext(
    x: np.ndarray, smooth_scales: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """x in int8 steps of absmax / 127 of each row, and the steps.

    Returns:
        int8 [..., columns], float32 [...].
    Source: `mindspore.ops.auto_generate.DynamicQuantExt`; CANN, aclnnDynamicQuant.
    """
    require(x.dtype in (np.float16, np.float32), f"x is {x.dtype}")
    require(x.ndim >= 2, f"x must have 2 axes or more, it has {x.ndim}")
    require(smooth_scales is None, "smooth_scales are none of GLM's")
    wide = x.astype(np.float32)
    scale = np.abs(wide).max(-1) / np.float32(127)
    codes = np.rint(wide / np.where(scale > 0, scale, 1)[..., None])
    return codes.astype(np.int8), scale


def quant_batch_matmul(
    x1: np.ndarray,
    x2: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray | None,
    bias: np.ndarray | None,
    pertoken_scale: np.ndarray | None,
    *,
    transpose_x1: bool,
    transpose_x2: bool,
    dtype: str,
) -> np.ndarray:
    """(x1 x2^T + bias) * scale [* pertoken_scale], of exact integer sums.

    Args:
        x1: int8 [rows, columns]; x2: int8 [outputs, columns].
        scale: [1] or [outputs]: int64 for float16 without a token's scale, else float32. Of the
            int64 the lower half is a float32, of which the upper 19 bits are read.
        bias: int32 [outputs].
        pertoken_scale: float32 [rows].
        dtype: of the result.
    Source: `mindspore.ops.auto_generate.QuantBatchMatmul`, whose bias is int32 only; CANN,
        aclnnQuantMatmulV4, the table of types for Atlas A2 and A3; aclnnTransQuantParamV2.
    """
    require(not transpose_x1 and transpose_x2, f"layouts {transpose_x1} {transpose_x2}")
    require(x1.dtype == x2.dtype == np.int8, f"x1 is {x1.dtype}, x2 {x2.dtype}")
    require(x1.ndim == x2.ndim == 2, f"x1 has {x1.ndim} axes, x2 {x2.ndim}")
    require(x1.shape[1] == x2.shape[1], f"x1 is {x1.shape}, x2 {x2.shape}")
    require(x2.shape[1] <= _LARGEST_LAST_AXIS, f"x2 has {x2.shape[1]} columns")
    key = (dtype.lower(), pertoken_scale is not None)
    require(key in _PRODUCT_TYPES, f"the result would be {dtype}")
    require(scale.dtype in _PRODUCT_TYPES[key], f"scale is {scale.dtype} for {key}")
    outputs = (len(x2),)
    require(scale.shape in (outputs, (1,)), f"scale is {scale.shape} for {outputs}")
    require(offset is None, "an offset is for results in int8")
    if bias is not None:
        require(bias.dtype == np.int32, f"bias is {bias.dtype}")
        require(bias.shape == outputs, f"bias is {bias.shape} for {outputs}")
    sums = (x1.astype(np.float64) @ x2.astype(np.float64).T).astype(np.int64)  # exact
    if bias is not None:
        sums += bias
    require(np.abs(sums).max(initial=0) < 2**31, "a sum that int32 does not hold")
    if scale.dtype == np.int64:
        require((scale >> 32 == 0).all(), "an int64 scale that is no float32's bits")
        scale = (scale.astype(np.uint32) & _READ_SCALE_BITS).view(np.float32)
    result = sums.astype(np.float32) * scale
    if pertoken_scale is not None:
        require(pertoken_scale.dtype == np.float32, f"pertoken_scale is {pertoken_scale.dtype}")
        require(pertoken_scale.shape == x1.shape[:1], f"pertoken_scale {pertoken_scale.shape}")
        result *= pertoken_scale[:, None]
    return result.astype(np.float16 if key[0] == "float16" else np.float32)


def weight_quant_batch_matmul(
    x: np.ndarray,
    weight: np.ndarray,
    antiquant_scale: np.ndarray,
    antiquant_offset: np.ndarray | None,
    quant_scale: None,
    quant_offset: None,
    bias: None,
    *,
    transpose_x: bool,
    transpose_weight: bool,
    antiquant_group_size: int,
) -> np.ndarray:
    """x ((weight + antiquant_offset) * antiquant_scale)^T, in the type of x.

    Args:
        x: [rows, columns]; weight: int8 [outputs, columns].
        antiquant_scale, antiquant_offset: [outputs], in the type of x.
        bias: none here: CANN wants float32 beside bfloat16, MindSpore bfloat16.
    Source: `mindspore.ops.auto_generate.WeightQuantBatchMatmul`; CANN,
        aclnnWeightQuantBatchMatmulV2 by channels on Atlas A2 and A3.
    """
    require(not transpose_x and transpose_weight, f"layouts {transpose_x} {transpose_weight}")
    require(antiquant_group_size == 0, f"groups of {antiquant_group_size}")
    require(x.dtype in (np.float16, np.float32), f"x is {x.dtype}")
    require(weight.dtype == np.int8, f"weight is {weight.dtype}")
    require(x.ndim == weight.ndim == 2, f"x has {x.ndim} axes, weight {weight.ndim}")
    require(x.shape[1] == weight.shape[1], f"x is {x.shape}, weight {weight.shape}")
    require(max(weight.shape) <= _LARGEST_LAST_AXIS, f"weight is {weight.shape}")
    require(len(x) > 0, "no rows")
    _require_types(x, antiquant_scale=antiquant_scale)
    require(antiquant_scale.shape == (len(weight),), f"antiquant_scale {antiquant_scale.shape}")
    is_known = all(given is None for given in (quant_scale, quant_offset, bias))
    require(is_known, "an input that is not known here")
    wide = weight.astype(np.float32)
    if antiquant_offset is not None:
        _require_types(x, antiquant_offset=antiquant_offset)
        require(antiquant_offset.shape == antiquant_scale.shape, f"{antiquant_offset.shape}")
        wide += antiquant_offset.astype(np.float32)[:, None]
    wide *= antiquant_scale.astype(np.float32)[:, None]
    return (x.astype(np.float32) @ wide.T).astype(x.dtype)


def _require_scale(scale_value: float, head_dim: int) -> None:
    """What GLM wants; the operators take any."""
    require(abs(scale_value * head_dim**0.5 - 1) < 1e-6, f"scale {scale_value} of {head_dim}")


def _require_types(query: np.ndarray, **others: np.ndarray) -> None:
    for name, array in others.items():
        require(array.dtype == query.dtype, f"{name} is {array.dtype}, query {query.dtype}")


def _attend(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    scale: float,
    is_visible: np.ndarray,
) -> np.ndarray:
    """query [rows, heads, head_dim], keys and values [tokens, kv_heads, head_dim]."""
    group = query.shape[1] // keys.shape[1]
    wide_keys, wide_values = (
        np.repeat(x, group, axis=1).astype(np.float32) for x in (keys, values)
    )
    scores = np.einsum("rhd,thd->hrt", query.astype(np.float32), wide_keys) * np.float32(scale)
    scores = np.where(is_visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hrt,thd->rhd", weights, wide_values).astype(query.dtype)
