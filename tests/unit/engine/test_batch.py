import numpy as np
import pytest

from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.engine.batch import build_batch, build_slot_mapping
from mindformers_glm.engine.scheduler import Chunk
from mindformers_glm.engine.sequence import Sequence
from tests.unit.engine.make_sequence import make_sequence


def _holding(blocks: list[int], prompt: int) -> Sequence:
    sequence = make_sequence(prompt)
    sequence.block_table = blocks
    return sequence


def _chunk(sequence: Sequence, start: int, end: int) -> Chunk:
    return Chunk(sequence, start, end, is_sampled=end == sequence.num_tokens)


def _arrays(batch: ModelBatch) -> dict[str, list[int]]:
    return {
        name: value.tolist() for name, value in vars(batch).items() if isinstance(value, np.ndarray)
    }


def test_prefill_and_decode_rows_are_packed_in_one_step() -> None:
    first, second = _holding([0, 1], prompt=5), _holding([3, 2], prompt=7)
    batch = build_batch([_chunk(first, 0, 5), _chunk(second, 6, 7)], block_size=4)
    assert _arrays(batch) == {
        "token_ids": [1, 2, 3, 4, 5, 7],
        "positions": [0, 1, 2, 3, 4, 6],
        "slot_mapping": [0, 1, 2, 3, 4, 10],
        "query_start": [0, 5, 6],
        "seq_lens": [5, 7],
        "sample_rows": [4, 5],
        "is_prompt": [1, 1, 1, 1, 1, 1],
    }
    assert batch.block_tables == [[0, 1], [3, 2]]
    assert {array.dtype for array in vars(batch).values() if isinstance(array, np.ndarray)} == {
        np.dtype(np.int32)
    }


def test_a_prompt_that_fills_its_block_stays_in_it() -> None:
    batch = build_batch([_chunk(_holding([2], prompt=4), 0, 4)], block_size=4)
    assert batch.slot_mapping.tolist() == [8, 9, 10, 11]


def test_one_token_over_the_block_goes_to_the_next() -> None:
    batch = build_batch([_chunk(_holding([2, 0], prompt=5), 0, 5)], block_size=4)
    assert batch.slot_mapping.tolist() == [8, 9, 10, 11, 0]


def test_a_one_token_prompt_is_one_sampled_row() -> None:
    batch = build_batch([_chunk(_holding([1], prompt=1), 0, 1)], block_size=4)
    assert _arrays(batch) == {
        "token_ids": [1],
        "positions": [0],
        "slot_mapping": [4],
        "query_start": [0, 1],
        "seq_lens": [1],
        "sample_rows": [0],
        "is_prompt": [1],
    }


def test_only_the_last_chunk_of_a_prompt_is_sampled() -> None:
    sequence, other = _holding([0, 1], prompt=6), _holding([2], prompt=2)
    first = build_batch([_chunk(sequence, 0, 4), _chunk(other, 0, 2)], block_size=4)
    assert first.sample_rows.tolist() == [5]
    last = build_batch([_chunk(sequence, 4, 6)], block_size=4)
    assert last.sample_rows.tolist() == [1]
    assert last.seq_lens.tolist() == [6]


def test_all_rows_can_be_sampled() -> None:
    chunk = _chunk(_holding([0, 1], prompt=6), 0, 3)
    batch = build_batch([chunk], block_size=4, sample_all_rows=True)
    assert batch.sample_rows.tolist() == [0, 1, 2]


def test_tokens_beyond_the_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens do not fit into 1 blocks of 4"):
        build_slot_mapping([0], 0, 5, 4)


def test_a_drafts_rows_follow_its_sequences_and_are_all_sampled() -> None:
    a = make_sequence(3)
    a.block_table = [0]
    b = make_sequence(6, generated=[7])
    b.block_table = [3, 2, 5]
    chunks = [Chunk(a, 0, 2, False), Chunk(b, 6, 7, True, draft=(8, 9)), Chunk(a, 2, 3, True)]
    batch = build_batch(chunks, block_size=4)
    assert batch.token_ids.tolist() == [1, 2, 7, 8, 9, 3]
    assert batch.positions.tolist() == [0, 1, 6, 7, 8, 2]
    assert batch.slot_mapping.tolist() == [0, 1, 10, 11, 20, 2]
    assert batch.query_start.tolist() == [0, 2, 5, 6]
    assert batch.seq_lens.tolist() == [2, 9, 3]
    assert batch.sample_rows.tolist() == [2, 3, 4, 5]
    assert batch.is_prompt.tolist() == [1, 1, 0, 0, 0, 1]
    assert batch.token_ids.dtype == batch.sample_rows.dtype == np.int32


def test_tokens_stay_what_they_were_when_a_sequence_runs_again() -> None:
    sequence = make_sequence(3, generated=[7, 8])
    sequence.block_table = [0, 1]
    batch = build_batch([_chunk(sequence, 0, 5)], block_size=4)  # after a preemption
    assert batch.is_prompt.tolist() == [1, 1, 1, 0, 0]
    chunk = build_batch([_chunk(sequence, 2, 5)], block_size=4)
    assert chunk.is_prompt.tolist() == [1, 0, 0]
