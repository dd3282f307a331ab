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
