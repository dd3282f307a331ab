"""What compare_commits.py runs and calls the same; what compare_speed.py calls as fast."""

import numpy as np
import pytest
from commits.bits_worker import (
    BLOCK_SIZE,
    LONG_STEPS,
    MAX_MODEL_LEN,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    STEPS,
    make_batch,
    scatter_blocks,
)
from compare_commits import compare_logits
from compare_speed import Figure, in_turn

from mindformers_glm.engine.batch import build_slot_mapping

ALL_STEPS = STEPS | LONG_STEPS


def test_the_last_bit_of_a_logit_is_a_difference() -> None:
    logits = np.array([[1, np.nan], [0, 2]], np.float32)
    assert compare_logits(logits, logits.copy()) == ""
    other = logits.copy()
    other[1, 1] = np.nextafter(other[1, 1], np.float32(3))
    assert compare_logits(logits, other) == "1 of 4 logits, by up to 2.38e-07"


def test_minus_zero_is_another_zero() -> None:
    zero = np.zeros((1, 1), np.float32)
    assert compare_logits(zero, -zero).startswith("1 of 1")


@pytest.mark.parametrize("name", ALL_STEPS)
def test_a_step_is_what_an_engine_may_ask_of_a_runner(name: str) -> None:
    parts = ALL_STEPS[name]
    tables = scatter_blocks(ALL_STEPS)
    batch = make_batch(parts, tables, np.arange(MAX_NUM_BATCHED_TOKENS, dtype=np.int32))
    assert len(batch.token_ids) == batch.query_start[-1] <= MAX_NUM_BATCHED_TOKENS
    assert len(parts) <= MAX_NUM_SEQS
    assert max(batch.seq_lens) <= MAX_MODEL_LEN
    slots = [
        build_slot_mapping(table, start, end, BLOCK_SIZE)
        for table, (_, start, end, _) in zip(batch.block_tables, parts, strict=True)
    ]
    np.testing.assert_array_equal(batch.slot_mapping, np.concatenate(slots))
    assert len(batch.sample_rows) == sum(samples for *_, samples in parts)
    assert len(batch.is_prompt) == len(batch.token_ids)
    assert set(batch.is_prompt) <= {0, 1}


def test_no_step_reads_a_position_that_none_has_written() -> None:
    lengths: dict[int, int] = {}
    for parts in ALL_STEPS.values():
        for number, start, end, _ in parts:
            assert start <= lengths.get(number, 0)
            lengths[number] = end


def test_sides_take_turns_so_that_a_drift_cancels() -> None:
    assert list(in_turn(2)) == ["old", "new", "again", "again", "new", "old"]


def _figure(old: list[float], new: list[float], again: list[float]) -> Figure:
    return Figure("decode", 0.02, {"old": old, "new": new, "again": again})


def test_more_than_the_limit_is_not_kept() -> None:
    assert _figure([1, 1, 1], [1.01, 1.01, 9], [1, 1, 1]).is_kept
    assert not _figure([1, 1, 1], [1.03, 1.03, 0.1], [1, 1, 1]).is_kept


def test_what_a_commit_differs_from_itself_is_allowed() -> None:
    noisy = _figure([1, 1, 1, 1], [1.03] * 4, [0.9, 0.9, 1.1, 1.1])
    assert noisy.is_kept
    assert noisy.verdict == "kept, but says little: a busy machine"
