"""A long prompt holds up neither answers under way nor short prompts."""

from mindformers_glm.engine.block_pool import BlockPool
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.scheduler import Schedule, Scheduler
from tests.unit.engine.drive_scheduler import add, run_step


def make_scheduler(**sizes: int) -> Scheduler:
    defaults = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "block_size": 4,
        "num_blocks": 10_000,
        "prefill_tokens_beside_decode": 4,
        "enable_prefix_caching": False,
    }
    config = EngineConfig(max_model_len=40_000, seed=0, **(defaults | sizes))
    return Scheduler(config, BlockPool(config.num_blocks))


def rows_of(schedule: Schedule) -> dict[int, int]:
    """Rows of the step, by the lengths of the prompts they belong to."""
    return {chunk.sequence.num_prompt_tokens: chunk.num_rows for chunk in schedule.chunks}


def test_an_answer_gets_a_token_in_every_step_beside_a_prompt_of_30000() -> None:
    scheduler = make_scheduler()
    (answer,) = add(scheduler, 3)
    run_step(scheduler)
    add(scheduler, 30_000)
    for step in range(2, 100):
        assert rows_of(run_step(scheduler)) == {3: 1, 30_000: 4}
        assert answer.num_generated == step


def test_a_prompt_alone_fills_the_step() -> None:
    scheduler = make_scheduler()
    add(scheduler, 30_000)
    assert rows_of(run_step(scheduler)) == {30_000: 32}


def test_a_prompt_gets_as_many_rows_as_there_are_answers() -> None:
    scheduler = make_scheduler()
    add(scheduler, *[1] * 6)
    run_step(scheduler)
    add(scheduler, 300)
    assert rows_of(run_step(scheduler))[300] == 6


def test_the_budget_of_a_step_holds_beside_many_answers() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    add(scheduler, *[1] * 6)
    run_step(scheduler)
    add(scheduler, 300)
    assert rows_of(run_step(scheduler))[300] == 2


def test_a_short_prompt_begins_beside_a_long_one() -> None:
    scheduler = make_scheduler()
    add(scheduler, 30_000)
    run_step(scheduler)
    (short,) = add(scheduler, 10)
    assert rows_of(run_step(scheduler)) == {10: 10, 30_000: 22}
    assert short.num_generated == 1


def test_what_a_short_prompt_does_not_need_goes_to_the_long_ones() -> None:
    scheduler = make_scheduler()
    add(scheduler, 500)
    run_step(scheduler)
    add(scheduler, 600)
    assert rows_of(run_step(scheduler)) == {600: 16, 500: 16}
    add(scheduler, 20)
    assert rows_of(run_step(scheduler)) == {20: 16, 500: 8, 600: 8}
    assert rows_of(run_step(scheduler)) == {20: 4, 500: 14, 600: 14}


def test_half_of_the_step_is_for_the_prompt_that_has_least_left() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=64)
    add(scheduler, 500)
    run_step(scheduler)
    add(scheduler, 600)
    run_step(scheduler)
    add(scheduler, 700)
    run_step(scheduler)
    assert rows_of(run_step(scheduler)) == {500: 32, 600: 16, 700: 16}


def test_a_long_prompt_has_the_whole_step_while_nobody_else_can_begin() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    add(scheduler, 300)
    run_step(scheduler)
    add(scheduler, 10)
    assert rows_of(run_step(scheduler)) == {300: 32}
