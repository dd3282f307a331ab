"""Sharing the blocks of a common beginning saves rows and changes not one token."""

import random
from typing import Any

import pytest

from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.drive import generate, make_engine, run_all, run_random_traffic
from tests.engine.fake_runner import FakeRunner, answer
from tests.engine.test_speculation import SAMPLED, RepeatingRunner

SYSTEM = [7, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]  # three blocks of 4


def _num_rows(engine: LLMEngine) -> int:
    return sum(engine.runner.rows_per_step)


def test_a_shared_system_prompt_is_computed_once() -> None:
    engine = make_engine()
    prompts = [[*SYSTEM, number] for number in range(8)]
    outputs = generate(engine, prompts, max_new_tokens=1)
    assert [output.token_ids for output in outputs] == [answer(prompt, 1) for prompt in prompts]
    assert [output.num_cached_tokens for output in outputs] == [0] + [12] * 7
    assert _num_rows(engine) == 12 + 8


def test_the_next_turn_takes_over_prompt_and_answer() -> None:
    engine = make_engine()
    (first,) = generate(engine, [SYSTEM], max_new_tokens=9)
    turn = [*SYSTEM, *first.token_ids, 1, 2, 3]
    (second,) = generate(engine, [turn], max_new_tokens=9)
    assert second.token_ids == answer(turn, 9)
    assert second.num_cached_tokens == 20  # K and V of the last token were never computed


def test_an_output_says_what_was_taken_over_from_its_first_step_on() -> None:
    engine = make_engine()
    generate(engine, [SYSTEM], max_new_tokens=1)
    engine.add_request("a", [*SYSTEM, 1], SamplingParams(max_new_tokens=3))
    assert [output.num_cached_tokens for output in run_all(engine)] == [12] * 3


def test_switched_off_nothing_is_shared() -> None:
    engine = make_engine(enable_prefix_caching=False)
    outputs = generate(engine, [SYSTEM] * 3, max_new_tokens=1)
    assert [output.num_cached_tokens for output in outputs] == [0] * 3
    assert _num_rows(engine) == 3 * 12


class _InterruptedRunner(FakeRunner):
    """Is interrupted in its first step, before anything is written."""

    is_first = True

    def execute(self, batch: Any) -> Any:
        if self.is_first:
            self.is_first = False
            raise KeyboardInterrupt
        return super().execute(batch)


@pytest.mark.parametrize("aborted", [None, "0", "1"])
def test_what_an_interrupted_step_did_not_compute_is_not_shared(aborted: str | None) -> None:
    engine = make_engine(runner_type=_InterruptedRunner)
    prompts = [[*SYSTEM, number] for number in range(3)]
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, SamplingParams(max_new_tokens=5))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    if aborted is not None:
        engine.abort(aborted)
    done = {output.request_id: output.token_ids for output in run_all(engine) if output.finished}
    expected = {str(number): answer(prompt, 5) for number, prompt in enumerate(prompts)}
    expected.pop(aborted or "", None)
    assert done == expected
    assert engine.pool.num_free == engine.pool.num_blocks


def _prompt(rng: random.Random) -> list[int]:
    """One of few beginnings, cut anywhere, and a few tokens of few kinds."""
    text = random.Random(rng.randrange(3)).choices(range(9), k=30)
    return [*text[: rng.randint(1, 30)], *(rng.randrange(2) for _ in range(rng.randint(0, 5)))]


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_leaks_nothing_and_changes_no_answer(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {
        "max_num_seqs": rng.randint(1, 6),
        "max_num_batched_tokens": rng.randint(1, 30),
        "block_size": rng.choice([1, 3, 4, 8]),
        "max_model_len": 60,
        "prompt_lookup_num_tokens": rng.choice([0, 3, 8]),
    }
    # Sometimes barely room for one sequence of max_model_len.
    sizes["num_blocks"] = -(-60 // sizes["block_size"]) + rng.randint(0, 30)
    engine = make_engine(runner_type=RepeatingRunner, eos_token_ids=[20, 30], **sizes)
    plain = make_engine(
        runner_type=RepeatingRunner,
        eos_token_ids=[20, 30],
        max_model_len=60,
        enable_prefix_caching=False,
    )
    pairs = run_random_traffic(
        rng,
        engine,
        plain,
        lambda: _prompt(rng),
        SAMPLED,
        num_requests=25,
        max_new_tokens=20,
        after_each=lambda: engine.pool.forget_all() if rng.random() < 0.05 else None,
    )
    for found, expected in pairs:
        assert found.token_ids == expected.token_ids
    assert sum(found.num_cached_tokens for found, _ in pairs) > 0
