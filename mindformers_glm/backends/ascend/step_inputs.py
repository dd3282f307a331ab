"""A step as upstream's `construct` takes it: the one place that maps our metadata to theirs.

| ours | upstream's | |
|---|---|---|
| seq_lens | batch_valid_length | tokens of each sequence behind this step |
| cached_lens | context_lens_tensor | tokens that were there before |
| query_lens | q_seq_lens | new tokens |

Masks (mindformers 1.7.0, and vLLM-MindSpore 0.5.1, which calls the same network): prompts from
their first token on take FlashAttentionScore with one 128 x 128 upper triangle, of 1.0 in bfloat16
and -10000 in float16; everything else takes PagedAttention, without a mask where every sequence has
one new token, else with a row for each new token.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from mindspore.common.np_dtype import bfloat16

from mindformers_glm.backends.runner import ModelBatch

MASKED = -10000.0
_PREFILL_MASK_SIZE = 128
# Made in the type that is wanted: a chunk of 512 rows behind 8192 tokens has 4 million elements.
_MASK_TYPES: dict[str, Any] = {
    "bfloat16": bfloat16,
    "float16": np.float16,
    "float32": np.float32,
}


@dataclass(frozen=True)
class UpstreamStep:
    """Arrays for upstream's `construct`; the integers are int32.

    is_prefill: every sequence begins with this step.
    attention_mask: compute type [128, 128], [num_rows, longest seq_len] or [1, 1].
    """

    is_prefill: bool
    input_ids: np.ndarray
    positions: np.ndarray
    batch_valid_length: np.ndarray
    context_lens_tensor: np.ndarray
    q_seq_lens: np.ndarray
    block_tables: np.ndarray
    slot_mapping: np.ndarray
    attention_mask: np.ndarray


def make_upstream_step(batch: ModelBatch, compute_dtype: str) -> UpstreamStep:
    """Convert a step.

    Example: 5 prompt tokens beside the 7th of another sequence: q_seq_lens [5, 1],
    context_lens_tensor [0, 6], batch_valid_length [5, 7]; not a prefill, so a mask [6, 7].
    """
    query_lens = np.diff(batch.query_start).astype(np.int32)
    cached_lens = (batch.seq_lens - query_lens).astype(np.int32)
    is_prefill = not cached_lens.any()
    return UpstreamStep(
        is_prefill=is_prefill,
        input_ids=batch.token_ids.astype(np.int32),
        positions=batch.positions.astype(np.int32),
        batch_valid_length=batch.seq_lens.astype(np.int32),
        context_lens_tensor=cached_lens,
        q_seq_lens=query_lens,
        block_tables=_fill_tables(batch.block_tables),
        slot_mapping=batch.slot_mapping.astype(np.int32),
        attention_mask=_make_mask(batch, query_lens, is_prefill, compute_dtype),
    )


def _fill_tables(tables: list[list[int]]) -> np.ndarray:
    """int32 [num_seqs, most blocks]; behind the end of a table stands 0, which is not read."""
    filled = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(filled, tables, strict=True):
        row[: len(table)] = table
    return filled


def _make_mask(
    batch: ModelBatch, query_lens: np.ndarray, is_prefill: bool, compute_dtype: str
) -> np.ndarray:
    if is_prefill:
        return _make_prefill_mask(compute_dtype)
    if query_lens.max() == 1:
        return np.zeros((1, 1), _MASK_TYPES[compute_dtype])
    mask = np.zeros((len(batch.positions), batch.seq_lens.max()), _MASK_TYPES[compute_dtype])
    for row, position in zip(mask, batch.positions, strict=True):
        row[position + 1 :] = MASKED
    return mask


@cache
def _make_prefill_mask(compute_dtype: str) -> np.ndarray:
    value = 1.0 if compute_dtype == "bfloat16" else MASKED
    size = (_PREFILL_MASK_SIZE, _PREFILL_MASK_SIZE)
    return np.triu(np.full(size, value, np.float32), 1).astype(_MASK_TYPES[compute_dtype])
