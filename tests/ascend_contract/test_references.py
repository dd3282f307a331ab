"""The references refuse what the operators would: every mutation of a right call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.ascend_contract import references
from tests.ascend_contract.references import ContractError

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCKS = 4, 2, 16, 4, 6
Call = dict[str, Any]
Change = Callable[[Call], Any]


def _rows(rng: np.random.Generator, count: int, heads: int) -> np.ndarray:
    return rng.standard_normal((count, heads * HEAD_DIM)).astype(np.float16)


def _cache(rng: np.random.Generator) -> np.ndarray:
    size = (BLOCKS, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    return rng.standard_normal(size).astype(np.float16)


def _reshape_and_cache() -> Call:
    rng = np.random.default_rng(0)
    return {
        "key": _rows(rng, 3, KV_HEADS),
        "value": _rows(rng, 3, KV_HEADS),
        "key_cache": _cache(rng),
        "value_cache": _cache(rng),
        "slot_mapping": np.int32([5, 6, -1]),
    }


def _apply_rotary_pos_emb() -> Call:
    rng = np.random.default_rng(1)
    return {
        "query": _rows(rng, 5, HEADS),
        "key": _rows(rng, 5, KV_HEADS),
        "cos": _rows(rng, 9, 1),
        "sin": _rows(rng, 9, 1),
        "lengths": np.int32([2, 3]),
        "cos_format": 3,
        "is_prefill": True,
    }


def _flash_attention_score() -> Call:
    rng = np.random.default_rng(2)
    return {
        "query": _rows(rng, 5, HEADS),
        "key": _rows(rng, 5, KV_HEADS),
        "value": _rows(rng, 5, KV_HEADS),
        "attn_mask": np.triu(np.full((128, 128), -10000.0, np.float16), 1),
        "actual_seq_qlen": np.int32([2, 3]),
        "actual_seq_kvlen": np.int32([2, 3]),
        "head_num": HEADS,
        "scale_value": 0.25,
        "input_layout": "TH",
        "sparse_mode": 0,
    }


def _paged_attention() -> Call:
    rng = np.random.default_rng(3)
    mask = np.full((3, 7), -10000.0, np.float16)
    mask[0, :6] = mask[1, :7] = mask[2, :3] = 0
    return {
        "query": _rows(rng, 3, HEADS),
        "key_cache": _cache(rng),
        "value_cache": _cache(rng),
        "block_tables": np.int32([[2, 5], [1, 0]]),
        "context_lens": np.int32([7, 3]),
        "attn_mask": mask,
        "q_seq_lens": np.int32([2, 1]),
        "head_num": HEADS,
        "kv_head_num": KV_HEADS,
        "scale_value": 0.25,
    }


def _rms_norm() -> Call:
    rng = np.random.default_rng(4)
    return {"x": _rows(rng, 2, 1), "gamma": np.ones(HEAD_DIM, np.float16), "epsilon": 1e-5}


def _quant_v2() -> Call:
    rng = np.random.default_rng(5)
    return {
        "x": _rows(rng, 3, 1),
        "scale": np.float16([9.5]),
        "offset": np.float16([-3]),
        "sqrt_mode": False,
        "rounding_mode": "ROUND",
        "dst_type": "Int8",
    }


def _dynamic_quant_ext() -> Call:
    return {"x": _rows(np.random.default_rng(6), 3, 1), "smooth_scales": None}


def _quant_batch_matmul() -> Call:
    """A product of float16 by one scale of all activations."""
    rng = np.random.default_rng(7)
    scale = rng.uniform(1e-3, 1e-2, 5).astype(np.float32)
    return {
        "x1": rng.integers(-128, 128, (3, 7)).astype(np.int8),
        "x2": rng.integers(-128, 128, (5, 7)).astype(np.int8),
        "scale": scale.view(np.int32).astype(np.int64),
        "offset": None,
        "bias": rng.integers(-999, 999, 5).astype(np.int32),
        "pertoken_scale": None,
        "transpose_x1": False,
        "transpose_x2": True,
        "dtype": "Float16",
    }


def _weight_quant_batch_matmul() -> Call:
    rng = np.random.default_rng(8)
    return {
        "x": _rows(rng, 3, 1),
        "weight": rng.integers(-128, 128, (5, HEAD_DIM)).astype(np.int8),
        "antiquant_scale": rng.uniform(1e-3, 1e-2, 5).astype(np.float16),
        "antiquant_offset": np.float16([-3, 0, 1, 2, 5]),
        **dict.fromkeys(("quant_scale", "quant_offset", "bias")),
        "transpose_x": False,
        "transpose_weight": True,
        "antiquant_group_size": 0,
    }


def _check_lengths() -> Call:
    return {
        "batch_valid_length": np.int32([6, 1]),
        "context_lens_tensor": np.int32([4, 0]),
        "q_seq_lens": np.int32([2, 1]),
    }


def _set(name: str, value: Any) -> Change:
    return lambda call: call.update({name: value})


def _map(name: str, change: Callable[[np.ndarray], Any]) -> Change:
    return lambda call: call.update({name: change(call[name])})


def _mask_with(value: float, row: int, column: int) -> Change:
    def change(mask: np.ndarray) -> np.ndarray:
        mask = mask.copy()
        mask[row, column] = value
        return mask

    return _map("attn_mask", change)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64)


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


MUTATIONS: dict[Callable[[], Call], dict[str, Change]] = {
    _reshape_and_cache: {
        "slots in int64": _map("slot_mapping", _wide),
        "a slot beyond the cache": _set("slot_mapping", np.int32([5, 24, 1])),
        "a slot before the cache": _set("slot_mapping", np.int32([5, -2, 1])),
        "a slot twice": _set("slot_mapping", np.int32([5, 5, 1])),
        "a slot too few": _set("slot_mapping", np.int32([5, 6])),
        "keys of another type": _map("key", _float32),
        "values of another width": _map("value", lambda x: x[:, :-1]),
        "keys by head": _map("key", lambda x: x.reshape(3, KV_HEADS, HEAD_DIM)),
        "a cache by head": _map("key_cache", lambda x: x.transpose(0, 2, 1, 3)),
        "a cache of another block size": _map("value_cache", lambda x: x[:, :-1]),
        "a cache of another type": _map("value_cache", _float32),
        "a cache of 3 axes": lambda call: call.update(
            key_cache=call["key_cache"].reshape(BLOCKS, BLOCK_SIZE, -1),
            value_cache=call["value_cache"].reshape(BLOCKS, BLOCK_SIZE, -1),
        ),
    },
    _apply_rotary_pos_emb: {
        "another cos_format": _set("cos_format", 0),
        "lengths in int64": _map("lengths", _wide),
        "lengths that are cumulated": _set("lengths", np.int32([2, 5])),
        "tables in float32": lambda call: call.update(
            cos=_float32(call["cos"]), sin=_float32(call["sin"])
        ),
        "a table that is too short": lambda call: call.update(
            cos=call["cos"][:2], sin=call["sin"][:2]
        ),
        "the whole table for single rows": _set("is_prefill", False),
        "a key too few": _map("key", lambda x: x[:-1]),
        "a sequence too few": _set("lengths", np.int32([2])),
        "tables of another width": lambda call: call.update(
            cos=call["cos"][:, :-2], sin=call["sin"][:, :-2]
        ),
        "cos without sin": _map("sin", lambda x: x[:-1]),
        "queries by head": _map("query", lambda x: x.reshape(5, HEADS, HEAD_DIM)),
    },
    _flash_attention_score: {
        "another layout": _set("input_layout", "TND"),
        "another sparse mode": _set("sparse_mode", 3),
        "lengths in int64": _map("actual_seq_qlen", _wide),
        "lengths that are cumulated": lambda call: call.update(
            actual_seq_qlen=np.int32([2, 5]), actual_seq_kvlen=np.int32([2, 5])
        ),
        "keys of more tokens": _set("actual_seq_kvlen", np.int32([3, 3])),
        "a mask of another size": _map("attn_mask", lambda mask: mask[:5, :5]),
        "a mask of another type": _map("attn_mask", _float32),
        "a mask that hides a token": _mask_with(-10000.0, 4, 2),
        "a mask of bfloat16": _map("attn_mask", np.sign),
        "a mask that shows the next one": _mask_with(0.0, 0, 1),
        "values of another type": _map("value", _float32),
        "another number of heads": _set("head_num", 3),
        "heads of 8": _set("head_num", 2 * HEADS),
        "another scale": _set("scale_value", 1.0),
        "a key too few": _map("key", lambda x: x[:-1]),
        "a sequence too few": lambda call: call.update(
            actual_seq_qlen=np.int32([5]), actual_seq_kvlen=np.int32([4])
        ),
    },
    _paged_attention: {
        "a table in int64": _map("block_tables", _wide),
        "a table that is too short": _map("block_tables", lambda table: table[:, :1]),
        "a block that does not exist": _set("block_tables", np.int32([[2, 6], [1, 0]])),
        "lengths in int64": _map("context_lens", _wide),
        "lengths without the new tokens": _set("context_lens", np.int32([1, 2])),
        "a row too many": _set("q_seq_lens", np.int32([2, 2])),
        "no mask": _set("attn_mask", np.zeros((1, 1), np.float16)),
        "a mask that shows the next token": _mask_with(0.0, 0, 6),
        "a mask that hides a token": _mask_with(-10000.0, 2, 0),
        "a mask that hides too little": _map("attn_mask", np.sign),
        "queries in float32": _map("query", _float32),
        "another number of KV heads": _set("kv_head_num", HEADS),
        "another number of heads": _set("head_num", 2),
        "another scale": _set("scale_value", 1.0),
        "query lengths in int64": _map("q_seq_lens", _wide),
        "a sequence too few": _map("context_lens", lambda x: x[:1]),
        "a mask of another type": _map("attn_mask", _float32),
        "a mask with a row too few": _map("attn_mask", lambda mask: mask[:-1]),
        "a mask with a column too few": _map("attn_mask", lambda mask: mask[:, :-1]),
        "a cache of another type": _map("value_cache", _float32),
        "a cache of 3 axes": lambda call: call.update(
            key_cache=call["key_cache"].reshape(BLOCKS, BLOCK_SIZE, -1),
            value_cache=call["value_cache"].reshape(BLOCKS, BLOCK_SIZE, -1),
        ),
    },
    _rms_norm: {
        "a weight in float32": _map("gamma", _float32),
        "a weight of another size": _map("gamma", lambda gamma: gamma[:-1]),
        "an epsilon of 0": _set("epsilon", 0.0),
        "an epsilon above 1": _set("epsilon", 1.5),
    },
    _quant_v2: {
        "activations of integers": _map("x", lambda x: x.astype(np.int32)),
        "a scale in float32 for float16": _map("scale", _float32),
        "an offset in float32": _map("offset", _float32),
        "an offset in int8": _map("offset", lambda offset: offset.astype(np.int8)),
        "a scale of two columns": _set("scale", np.float16([1, 2])),
        "a scale without axes": _set("scale", np.float16(9.5)),
        "an offset for each column": _set("offset", np.zeros(HEAD_DIM, np.float16)),
        "the root of a scale": _set("sqrt_mode", True),
        "rounding down": _set("rounding_mode", "FLOOR"),
        "results in int4": _set("dst_type", "Int4"),
    },
    _dynamic_quant_ext: {
        "activations of integers": _map("x", lambda x: x.astype(np.int8)),
        "a single row without an axis": _map("x", lambda x: x[0]),
        "smooth scales": _set("smooth_scales", np.ones(HEAD_DIM, np.float16)),
    },
    _quant_batch_matmul: {
        "activations that are no integers": _map("x1", _float32),
        "a weight of int32": _map("x2", lambda x2: x2.astype(np.int32)),
        "a weight by columns": _map("x2", np.transpose),
        "a weight by columns, told so": lambda call: call.update(
            x2=call["x2"].T, transpose_x2=False
        ),
        "activations by columns": _set("transpose_x1", True),
        "another number of columns": _map("x1", lambda x1: x1[:, :-1]),
        "three axes": _map("x1", lambda x1: x1[None]),
        "more columns than an axis may have": lambda call: call.update(
            x1=np.zeros((3, 65536), np.int8), x2=np.zeros((5, 65536), np.int8)
        ),
        "a float32 scale for float16": _set("scale", np.ones(5, np.float32)),
        "an int64 scale for float32": _set("dtype", "Float32"),
        "an int64 scale with a token's": _set("pertoken_scale", np.ones(3, np.float32)),
        "an int64 that is a number": _set("scale", np.full(5, 1 << 40)),
        "a scale too few": _map("scale", lambda scale: scale[:-1]),
        "a scale by rows": _map("scale", lambda scale: scale[:, None]),
        "an offset": _set("offset", np.zeros(5, np.float32)),
        "a float bias": _map("bias", _float32),
        "a bias of int64": _map("bias", _wide),
        "a bias too few": _map("bias", lambda bias: bias[:-1]),
        "a bias that overflows": _set("bias", np.full(5, 2**31 - 1, np.int32)),
        "results in float64": _set("dtype", "Float64"),
        "a token's scale in float16": lambda call: call.update(
            scale=np.ones(5, np.float32), pertoken_scale=np.ones(3, np.float16)
        ),
        "a token's scale too few": lambda call: call.update(
            scale=np.ones(5, np.float32), pertoken_scale=np.ones(2, np.float32)
        ),
        "a token's scale with an axis": lambda call: call.update(
            scale=np.ones(5, np.float32), pertoken_scale=np.ones((3, 1), np.float32)
        ),
    },
    _weight_quant_batch_matmul: {
        "activations of integers": _map("x", lambda x: x.astype(np.int8)),
        "activations with three axes": _map("x", lambda x: x[None]),
        "no activations": _map("x", lambda x: x[:0]),
        "a weight in float16": _map("weight", lambda weight: weight.astype(np.float16)),
        "a weight by columns": _map("weight", np.transpose),
        "a weight by columns, told so": lambda call: call.update(
            weight=call["weight"].T, transpose_weight=False
        ),
        "a scale in float32 for float16": _map("antiquant_scale", _float32),
        "a scale too few": _map("antiquant_scale", lambda scale: scale[:-1]),
        "a scale by rows": _map("antiquant_scale", lambda scale: scale[:, None]),
        "an offset in int8": _map("antiquant_offset", lambda offset: offset.astype(np.int8)),
        "an offset too few": _map("antiquant_offset", lambda offset: offset[:-1]),
        "groups": _set("antiquant_group_size", 32),
        "a bias": _set("bias", np.zeros(5, np.float16)),
    },
    _check_lengths: {
        "lengths without the new tokens": _set("batch_valid_length", np.int32([4, 0])),
        "contexts of the whole": _set("context_lens_tensor", np.int32([6, 1])),
        "query lengths cumulated": _set("q_seq_lens", np.int32([2, 3])),
        "a sequence too few": _map("q_seq_lens", lambda x: x[:1]),
        "lengths in int64": _map("batch_valid_length", _wide),
    },
}


@pytest.mark.parametrize("make", MUTATIONS, ids=lambda make: make.__name__.strip("_"))
def test_a_right_call_is_taken(make: Callable[[], Call]) -> None:
    getattr(references, make.__name__.strip("_"))(**make())


@pytest.mark.parametrize(
    ("make", "change"),
    [
        pytest.param(make, change, id=f"{make.__name__.strip('_')}: {name}")
        for make, changes in MUTATIONS.items()
        for name, change in changes.items()
    ],
)
def test_a_wrong_call_is_refused(make: Callable[[], Call], change: Change) -> None:
    call = make()
    change(call)
    with pytest.raises(ContractError):
        getattr(references, make.__name__.strip("_"))(**call)


def test_quant_v2_has_the_result_of_its_documentation() -> None:
    x, scale, offset = (np.float32(v) for v in ([100, 150], [80, 40], [0, 2]))
    codes = references.quant_v2(
        x, scale, offset, sqrt_mode=False, rounding_mode="ROUND", dst_type="Int8"
    )
    assert codes.tolist() == [127, 127]


def test_an_int64_scale_is_read_to_19_bits() -> None:
    call = _quant_batch_matmul()
    scale = call["scale"].astype(np.uint32).view(np.float32)
    sums = call["x1"].astype(np.int64) @ call["x2"].astype(np.int64).T + call["bias"]
    found = references.quant_batch_matmul(**call).astype(np.float64)
    assert (np.abs(found) <= np.abs(sums * scale) * (1 + 2**-11)).all()
    assert (np.abs(found) >= np.abs(sums * scale) * (1 - 2**-10 - 2**-11)).all()
