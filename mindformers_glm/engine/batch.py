"""The flat arrays of one step, made from what the scheduler chose."""

from collections.abc import Sequence as Items

import numpy as np

from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.engine.scheduler import Chunk


def build_batch(chunks: Items[Chunk], block_size: int, sample_all_rows: bool = False) -> ModelBatch:
    """Pack chunks of distinct sequences into one step.

    Args:
        chunks: at least one; each sequence holds blocks for its chunk.
        sample_all_rows: ask for the logits of every row, not only of each last one.
    """
    query_start = np.cumsum([0, *(chunk.num_rows for chunk in chunks)], dtype=np.int32)
    # Tokens and draft of each chunk: positions [start, end).
    ends = [chunk.end + len(chunk.draft) for chunk in chunks]
    samples = [
        np.arange(end_row - chunk.num_samples, end_row, dtype=np.int32)
        for chunk, end_row in zip(chunks, query_start[1:], strict=True)
    ]
    return ModelBatch(
        token_ids=np.concatenate([_token_ids(chunk) for chunk in chunks]),
        positions=np.concatenate(
            [np.arange(c.start, end, dtype=np.int32) for c, end in zip(chunks, ends, strict=True)]
        ),
        slot_mapping=np.concatenate(
            [
                build_slot_mapping(c.sequence.block_table, c.start, end, block_size)
                for c, end in zip(chunks, ends, strict=True)
            ]
        ),
        query_start=query_start,
        seq_lens=np.array(ends, np.int32),
        block_tables=[list(chunk.sequence.block_table) for chunk in chunks],
        sample_rows=(
            np.arange(query_start[-1], dtype=np.int32)
            if sample_all_rows
            else np.concatenate(samples)
        ),
        is_prompt=np.concatenate(
            [
                np.arange(chunk.start, end, dtype=np.int32) < chunk.sequence.num_prompt_tokens
                for chunk, end in zip(chunks, ends, strict=True)
            ]
        ).astype(np.int32),
    )


def _token_ids(chunk: Chunk) -> np.ndarray:
    token_ids = chunk.sequence.token_ids[chunk.start : chunk.end]
    if not chunk.draft:
        return token_ids
    return np.concatenate([token_ids, np.array(chunk.draft, np.int32)])


def build_slot_mapping(
    block_table: Items[int], start: int, end: int, block_size: int
) -> np.ndarray:
    """Map token positions [start, end) of one sequence to KV-cache slots.

    Args:
        block_table: physical block ids, in logical order.
        block_size: tokens per block.
    Returns:
        int32 [end - start]; slot = block_table[p // block_size] * block_size + p % block_size.
    Raises:
        ValueError: `end` lies beyond the allocated blocks.
    """
    if end > len(block_table) * block_size:
        raise ValueError(f"{end} tokens do not fit into {len(block_table)} blocks of {block_size}")
    positions = np.arange(start, end, dtype=np.int32)
    first = start // block_size  # blocks before it would be read in every step of a long answer
    blocks = np.asarray(block_table[first : -(-end // block_size)], np.int32)
    return blocks[positions // block_size - first] * np.int32(block_size) + positions % np.int32(
        block_size
    )
