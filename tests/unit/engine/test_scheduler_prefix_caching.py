"""What the scheduler takes over from sequences that begin alike."""

from typing import Any

import pytest

from mindformers_glm.engine.block_pool import BlockPool
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.scheduler import Schedule, Scheduler
from mindformers_glm.engine.sequence import Sequence
from tests.unit.engine.drive_scheduler import add, run_step
from tests.unit.engine.make_sequence import make_sequence

PROMPT = [11, 12, 13, 14, 15, 16, 17, 18, 19]  # two blocks of 4 and one token


def _scheduler(num_blocks: int = 50, **sizes: Any) -> Scheduler:
    defaults = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "block_size": 4}
    config = EngineConfig(max_model_len=1000, num_blocks=num_blocks, seed=0, **(defaults | sizes))
    return Scheduler(config, BlockPool(num_blocks))


def _rows(schedule: Schedule) -> list[tuple[int, int]]:
    return [(chunk.start, chunk.end) for chunk in schedule.chunks]


@pytest.mark.parametrize(
    ("second", "num_shared"),
    [
        (PROMPT, 8),
        (PROMPT[:8], 4),  # exactly full: the last token has to be computed
        (PROMPT[:7], 4),
        (PROMPT[:5], 4),
        (PROMPT[:4], 0),
        (PROMPT[:3], 0),
        ([*PROMPT, 20, 21, 22], 8),
        ([*PROMPT[:7], 99, *PROMPT[8:]], 4),
        ([99, *PROMPT[1:]], 0),
        (PROMPT[4:], 0),  # the same block at another place
    ],
    ids=str,
)
@pytest.mark.parametrize("is_first_done", [False, True])
def test_full_blocks_of_the_same_beginning_are_taken_over(
    second: list[int], num_shared: int, is_first_done: bool
) -> None:
    scheduler = _scheduler()
    (a,) = add(scheduler, PROMPT)
    run_step(scheduler)
    first_blocks = list(a.block_table)
    if is_first_done:
        scheduler.remove(a)
    (b,) = add(scheduler, second)
    assert _rows(run_step(scheduler))[-1] == (num_shared, len(second))
    assert b.num_cached_tokens == num_shared
    assert b.block_table[: num_shared // 4] == first_blocks[: num_shared // 4]
    assert not set(b.block_table[num_shared // 4 :]) & set(a.block_table)


def test_without_prefix_caching_everything_is_computed() -> None:
    scheduler = _scheduler(enable_prefix_caching=False)
    a, b = add(scheduler, PROMPT, PROMPT)
    assert _rows(run_step(scheduler)) == [(0, 9), (0, 9)]
    assert not set(a.block_table) & set(b.block_table)
    assert b.num_cached_tokens == 0


def test_sequences_of_one_step_share_what_the_first_computes() -> None:
    scheduler = _scheduler()
    add(scheduler, PROMPT, PROMPT, [*PROMPT[:8], 30])
    assert _rows(run_step(scheduler)) == [(0, 9), (8, 9), (8, 9)]


def test_a_prompt_longer_than_a_step_is_still_computed_once() -> None:
    scheduler = _scheduler(max_num_batched_tokens=12)
    prompt = list(range(100, 130))
    add(scheduler, [*prompt, 1], [*prompt, 2], [*prompt, 3])
    steps = [_rows(run_step(scheduler)) for _ in range(3)]
    assert steps == [[(0, 12)], [(12, 24)], [(24, 31), (28, 31), (28, 30)]]


def test_answers_are_taken_over_too() -> None:
    scheduler = _scheduler()
    (a,) = add(scheduler, PROMPT)
    for _ in range(5):
        run_step(scheduler)
    scheduler.remove(a)  # 9 + 5 tokens, K and V of 13: three full blocks
    add(scheduler, [*PROMPT, 9, 9, 9, 9, 9, 50])
    assert _rows(run_step(scheduler)) == [(12, 15)]


def test_a_preempted_sequence_takes_its_own_blocks_back() -> None:
    scheduler = _scheduler(num_blocks=6)
    a, b = add(scheduler, [*range(50, 62)], PROMPT[:8])
    assert len(run_step(scheduler).chunks) == 2  # three and two blocks, one spare
    assert _rows(run_step(scheduler)) == [(12, 13)]  # a's fourth block is the last free one
    assert scheduler.num_preemptions == 1
    assert (b.num_computed, b.block_table) == (0, [])
    scheduler.remove(a)
    assert _rows(run_step(scheduler)) == [(8, 9)]
    assert b.num_cached_tokens == 0  # nothing of its prompt was there when it first ran


def test_a_waiting_sequence_leaves_the_blocks_it_could_share_free() -> None:
    scheduler = _scheduler(num_blocks=4)
    (a,) = add(scheduler, PROMPT)
    run_step(scheduler)
    (b,) = add(scheduler, [*PROMPT, 20, 21, 22, 23, 24])
    run_step(scheduler)
    assert (b.block_table, b.num_cached_tokens) == ([], None)
    scheduler.remove(a)
    assert _rows(run_step(scheduler)) == [(8, 14)]


def test_old_content_makes_place() -> None:
    scheduler = _scheduler(num_blocks=4)
    (a,) = add(scheduler, PROMPT)
    run_step(scheduler)
    scheduler.remove(a)
    (b,) = add(scheduler, list(range(50, 63)))
    assert _rows(run_step(scheduler)) == [(0, 13)]
    scheduler.remove(b)
    add(scheduler, PROMPT)
    assert _rows(run_step(scheduler)) == [(0, 9)]


def _guess(scheduler: Scheduler, draft_len: int) -> tuple[Schedule, Sequence]:
    """A step in which a sequence of 7 tokens, one of them pending, has a draft."""
    sequence = make_sequence([9] * 6, max_draft_len=draft_len)
    scheduler.add(sequence)
    run_step(scheduler)
    return scheduler.schedule(), sequence


@pytest.mark.parametrize(("num_accepted", "num_shared"), [(0, 4), (1, 8), (2, 8)])
def test_only_blocks_of_right_guesses_are_taken_over(num_accepted: int, num_shared: int) -> None:
    scheduler = _scheduler(prompt_lookup_num_tokens=7)
    schedule, a = _guess(scheduler, draft_len=4)
    (chunk,) = schedule.chunks
    assert (chunk.end, len(chunk.draft)) == (7, 4)
    scheduler.complete(schedule)
    for _ in range(num_accepted):
        a.append(9)
    a.append(1)
    scheduler.settle_draft(chunk, num_accepted)
    scheduler.remove(a)
    add(scheduler, [*a.token_ids.tolist(), 5, 5, 5, 5])
    assert _rows(run_step(scheduler))[-1][0] == num_shared
    # Nor is there anything under the name of what was guessed wrongly.
    add(scheduler, [9] * (7 + num_accepted) + [9, 9, 9, 9])
    assert _rows(run_step(scheduler))[-1][0] == num_shared


def test_blocks_of_a_step_that_was_interrupted_are_not_taken_over() -> None:
    scheduler = _scheduler()
    a, b, c = add(scheduler, PROMPT, PROMPT, [50] * 5)
    assert _rows(scheduler.schedule()) == [(0, 9), (8, 9), (0, 5)]  # and complete() never comes
    scheduler.remove(a)
    assert (b.num_computed, b.block_table) == (0, [])
    schedule = run_step(scheduler)
    assert [(chunk.sequence, chunk.start) for chunk in schedule.chunks] == [(c, 0), (b, 0)]


def test_a_step_that_was_interrupted_is_repeated_with_the_same_sharing() -> None:
    scheduler = _scheduler()
    add(scheduler, PROMPT, PROMPT)
    for _ in range(3):
        assert _rows(scheduler.schedule()) == [(0, 9), (8, 9)]
    assert scheduler.num_preemptions == 0
