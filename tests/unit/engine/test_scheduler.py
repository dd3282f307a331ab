from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.block_pool import BlockPool
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.scheduler import Schedule, Scheduler
from mindformers_glm.engine.sequence import Sequence
from tests.unit.engine.drive_scheduler import add, run_step
from tests.unit.engine.make_sequence import make_sequence


def _scheduler(num_blocks: int = 100, **sizes: int) -> Scheduler:
    defaults = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
        "block_size": 4,
        "prompt_lookup_num_tokens": 7,
        "enable_prefix_caching": False,  # test_prefix_caching.py
    }
    config = EngineConfig(max_model_len=1000, num_blocks=num_blocks, seed=0, **(defaults | sizes))
    return Scheduler(config, BlockPool(num_blocks))


def _ranges(schedule: Schedule) -> list[tuple[Any, int, int]]:
    return [(chunk.sequence, chunk.start, chunk.end) for chunk in schedule.chunks]


def test_short_prompts_run_together() -> None:
    scheduler = _scheduler()
    a, b = add(scheduler, 3, 5)
    assert _ranges(run_step(scheduler)) == [(a, 0, 3), (b, 0, 5)]
    assert _ranges(run_step(scheduler)) == [(a, 3, 4), (b, 5, 6)]


def test_a_long_prompt_is_split_by_the_token_budget() -> None:
    scheduler = _scheduler()
    (a,) = add(scheduler, 40)
    schedules = [run_step(scheduler) for _ in range(4)]
    assert [_ranges(s) for s in schedules] == [
        [(a, 0, 16)],
        [(a, 16, 32)],
        [(a, 32, 40)],
        [(a, 40, 41)],
    ]
    assert [s.chunks[0].is_sampled for s in schedules] == [False, False, True, True]


def test_decoding_goes_before_a_prompt_under_way() -> None:
    scheduler = _scheduler()
    a, b = add(scheduler, 3, 40)
    assert _ranges(run_step(scheduler)) == [(a, 0, 3), (b, 0, 13)]
    assert _ranges(run_step(scheduler)) == [(a, 3, 4), (b, 13, 28)]


def test_the_step_never_exceeds_the_budget() -> None:
    scheduler = _scheduler(max_num_batched_tokens=3)
    add(scheduler, 2, 2, 2, 2)
    for _ in range(20):
        assert 0 < run_step(scheduler).num_tokens <= 3


def test_no_more_than_max_num_seqs_run() -> None:
    scheduler = _scheduler(max_num_seqs=2)
    a, b, c = add(scheduler, 1, 1, 1)
    assert [chunk.sequence for chunk in run_step(scheduler).chunks] == [a, b]
    scheduler.remove(a)
    assert [chunk.sequence for chunk in run_step(scheduler).chunks] == [b, c]


def test_a_later_short_prompt_does_not_overtake() -> None:
    scheduler = _scheduler(num_blocks=4)
    a, _, _ = add(scheduler, 12, 8, 1)
    assert [chunk.sequence for chunk in run_step(scheduler).chunks] == [a]


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    scheduler = _scheduler(num_blocks=5, max_num_batched_tokens=32)
    a, b = add(scheduler, 8, 8)
    assert len(run_step(scheduler).chunks) == 2  # two blocks each, one spare
    # Both need a third block: the older one gets it, the younger one's blocks become free.
    assert _ranges(run_step(scheduler)) == [(a, 8, 9)]
    assert (b.num_computed, b.block_table, b.num_generated) == (0, [], 1)
    assert scheduler.num_preemptions == 1
    scheduler.remove(a)
    assert _ranges(run_step(scheduler)) == [(b, 0, 9)]


def test_a_preempted_sequence_is_first_in_line() -> None:
    scheduler = _scheduler(num_blocks=5, max_num_batched_tokens=32)
    a, b, c = add(scheduler, 8, 8, 1)
    run_step(scheduler)
    run_step(scheduler)
    assert b.block_table == []
    scheduler.remove(a)
    assert [chunk.sequence for chunk in run_step(scheduler).chunks] == [b, c]


def test_a_newcomer_leaves_a_spare_block_for_everyone_running() -> None:
    scheduler = _scheduler(num_blocks=3)
    a, b = add(scheduler, 4, 8)
    assert [chunk.sequence for chunk in run_step(scheduler).chunks] == [a]
    assert b.block_table == []


def test_a_sequence_larger_than_the_pool_is_given_up_and_the_next_runs() -> None:
    scheduler = _scheduler(num_blocks=2)
    a, b = add(scheduler, 9, 4)
    schedule = run_step(scheduler)
    assert schedule.unschedulable == [a]
    assert [chunk.sequence for chunk in schedule.chunks] == [b]


def test_a_lone_sequence_that_outgrows_the_pool_is_given_up() -> None:
    scheduler = _scheduler(num_blocks=2)
    (a,) = add(scheduler, 8)
    run_step(scheduler)
    schedule = run_step(scheduler)
    assert (schedule.unschedulable, schedule.chunks) == ([a], [])
    schedule = run_step(scheduler)  # it neither waits nor runs any more
    assert (schedule.unschedulable, schedule.chunks) == ([], [])
    assert a.block_table == []


def test_a_waiting_sequence_can_be_removed() -> None:
    scheduler = _scheduler()
    a, b = add(scheduler, 1, 1)
    scheduler.remove(a)
    assert [chunk.sequence for chunk in run_step(scheduler).chunks] == [b]


def test_nothing_to_do_gives_an_empty_step() -> None:
    assert _scheduler().schedule() == Schedule()


def _add_repeating(scheduler: Scheduler, *prompt_lens: int) -> list[Sequence]:
    """Prompts of nothing but the token that `run_step` appends, so a draft goes on with it."""
    sequences = [make_sequence([9] * length, max_draft_len=4) for length in prompt_lens]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def _drafts(schedule: Schedule) -> list[int]:
    return [len(chunk.draft) for chunk in schedule.chunks]


def test_only_decoding_sequences_get_drafts_and_all_their_rows_are_samples() -> None:
    scheduler = _scheduler()
    _add_repeating(scheduler, 6)
    assert _drafts(run_step(scheduler)) == [0]
    (chunk,) = (schedule := scheduler.schedule()).chunks
    assert (chunk.start, chunk.end, chunk.draft) == (6, 7, (9, 9, 9, 9))
    assert (chunk.num_rows, chunk.num_samples, schedule.num_tokens) == (5, 5, 5)


def test_drafts_take_what_prompts_leave_of_the_token_budget() -> None:
    scheduler = _scheduler(max_num_batched_tokens=8)
    _add_repeating(scheduler, 6)
    run_step(scheduler)
    add(scheduler, 5)
    assert _drafts(schedule := scheduler.schedule()) == [2, 0]
    assert schedule.num_tokens == 8


def test_drafts_stop_where_a_row_more_costs_time() -> None:
    scheduler = _scheduler(max_num_batched_tokens=64, prompt_lookup_num_tokens=9)
    _add_repeating(scheduler, 6, 6, 6)
    run_step(scheduler)
    assert _drafts(schedule := scheduler.schedule()) == [4, 3, 0]
    assert schedule.num_tokens == 10


@pytest.mark.parametrize(("num_left", "expected"), [(1, 0), (2, 1), (4, 3), (9, 4)])
def test_a_draft_ends_one_token_before_the_length_limit(num_left: int, expected: int) -> None:
    scheduler = _scheduler()
    (a,) = _add_repeating(scheduler, 6)
    run_step(scheduler)
    a.max_tokens = a.num_tokens + num_left
    assert _drafts(scheduler.schedule()) == [expected]


def test_a_draft_takes_free_blocks_only_and_preempts_nobody() -> None:
    scheduler = _scheduler(num_blocks=5, max_num_batched_tokens=32)
    a, b = _add_repeating(scheduler, 6, 6)
    run_step(scheduler)
    # Each has two blocks, 7 tokens in them and one place left; one block is free for a.
    assert _drafts(scheduler.schedule()) == [4, 1]
    assert (len(a.block_table), len(b.block_table)) == (3, 2)
    assert scheduler.num_preemptions == 0


def test_blocks_of_wrong_guesses_are_free_again() -> None:
    pool = BlockPool(10)
    config = EngineConfig(8, 32, 1000, 4, num_blocks=10, seed=0, prompt_lookup_num_tokens=7)
    scheduler = Scheduler(config, pool)
    (a,) = _add_repeating(scheduler, 7)
    run_step(scheduler)
    for num_accepted, num_blocks in ((0, 2), (1, 3)):
        schedule = scheduler.schedule()
        assert (_drafts(schedule), len(a.block_table)) == ([4], 3)
        scheduler.complete(schedule)
        scheduler.settle_draft(schedule.chunks[0], num_accepted)
        assert (a.num_computed, len(a.block_table)) == (8 + num_accepted, num_blocks)
        assert pool.num_free == 10 - num_blocks
        a.num_computed = 7


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens", "block_size"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        _scheduler(**{name: 0})


def test_a_negative_draft_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompt_lookup_num_tokens must be at least 0, got -1"):
        _scheduler(prompt_lookup_num_tokens=-1)
