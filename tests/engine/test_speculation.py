"""Guessing ahead changes how many steps an answer takes and not one of its tokens."""

import random
from typing import Any

import numpy as np
import pytest

from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.drive import generate, make_engine, run_all, run_random_traffic
from tests.engine.fake_runner import FakeRunner
from tests.engine.letters import letters

SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 0, "repetition_penalty": 1.05}
PROMPTS = [[(7 * n + k) % 9 for k in range(n)] for n in (1, 4, 5, 8, 9, 3, 17, 16)]


class RepeatingRunner(FakeRunner):
    """Goes round a cycle of nine tokens, now and then elsewhere, depending on all of the history.

    So drafts are right, partly right and wrong, and a wrong slot still changes the answer.
    """

    def _hash(self, history: np.ndarray) -> np.ndarray:
        logits = super()._hash(history)
        logits[(history[-1] + 1) % 9] += 11
        return logits


class CyclingRunner(FakeRunner):
    """Always goes round the cycle 0, 1, 2, 3, 4."""

    def _hash(self, history: np.ndarray) -> np.ndarray:
        logits = np.zeros(self.vocab_size)
        logits[(history[-1] + 1) % 5] = 1
        return logits


def _engine(num_tokens: int, *, is_cycling: bool = False, **sizes: Any) -> LLMEngine:
    runner_type = CyclingRunner if is_cycling else RepeatingRunner
    return make_engine(runner_type=runner_type, prompt_lookup_num_tokens=num_tokens, **sizes)


def _facts(outputs: list[RequestOutput]) -> list[tuple[list[int], str, str | None]]:
    return [(output.token_ids, output.text, output.finish_reason) for output in outputs]


@pytest.mark.parametrize("num_tokens", [10, 20])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"max_num_seqs": 1},
        {"max_num_batched_tokens": 1},
        {"max_num_batched_tokens": 2, "max_num_seqs": 1},
        {"max_num_batched_tokens": 5},
        {"num_blocks": 25, "max_num_batched_tokens": 7},
        {"num_blocks": 14},
        {"block_size": 1, "num_blocks": 60},
        {"block_size": 64, "num_blocks": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_those_without_guessing(
    num_tokens: int, sizes: dict[str, int], params: dict[str, Any]
) -> None:
    expected = generate(_engine(0), PROMPTS, seeds=True, max_new_tokens=20, **params)
    engine = _engine(num_tokens, **sizes)
    found = generate(engine, PROMPTS, seeds=True, max_new_tokens=20, **params)
    assert _facts(found) == _facts(expected)
    assert engine.pool.num_free == engine.pool.num_blocks
    if "max_num_batched_tokens" not in sizes:
        assert 0 < engine.num_accepted < engine.num_drafted


def test_a_repetition_takes_fewer_steps() -> None:
    engine = _engine(8, is_cycling=True)
    generate(engine, [[0]], max_new_tokens=60)
    assert len(engine.runner.rows_per_step) < 20
    assert engine.num_accepted > 40


@pytest.mark.parametrize("count", range(1, 24))
def test_the_length_limit_holds_within_a_draft(count: int) -> None:
    (output,) = generate(_engine(8, is_cycling=True), [[0]], max_new_tokens=count)
    assert output.token_ids == [(1 + i) % 5 for i in range(count)]
    assert output.finish_reason == "length"


def test_max_model_len_holds_within_a_draft() -> None:
    engine = _engine(8, is_cycling=True, max_model_len=40, num_blocks=10)
    (output,) = generate(engine, [[0]], max_new_tokens=60)
    assert len(output.token_ids) == 39


@pytest.mark.parametrize("min_new_tokens", range(12, 20))
def test_an_end_token_ends_within_a_draft_once_it_may(min_new_tokens: int) -> None:
    answers = [
        generate(
            _engine(num_tokens, eos_token_ids=[13]),
            [[0, 1, 2]],
            max_new_tokens=60,
            min_new_tokens=min_new_tokens,
            stop_token_ids=[3],
        )
        for num_tokens in (0, 8)
    ]
    assert _facts(answers[0]) == _facts(answers[1])
    assert answers[1][0].finish_reason == "stop"


def test_an_end_token_in_the_middle_of_a_draft_ends_the_answer() -> None:
    engine = _engine(8, is_cycling=True)
    (output,) = generate(engine, [[0, 1, 2, 3, 4] * 3], max_new_tokens=60, stop_token_ids=[2])
    assert output.token_ids == [0, 1, 2]
    assert len(engine.runner.rows_per_step) == 2
    assert engine.pool.num_free == engine.pool.num_blocks


def test_a_stop_text_in_the_middle_of_a_draft_ends_the_answer() -> None:
    engine = _engine(8, is_cycling=True)
    (output,) = generate(engine, [[0, 1, 2, 3, 4] * 3], max_new_tokens=60, stop="cd")
    assert (output.text, output.token_ids) == ("ab", [0, 1, 2, 3])
    assert len(engine.runner.rows_per_step) == 2


def test_deltas_of_several_tokens_join_to_the_text() -> None:
    engine = _engine(8, is_cycling=True)
    engine.add_request("a", [0], SamplingParams(max_new_tokens=50))
    outputs = run_all(engine)
    assert "".join(output.delta_text for output in outputs) == outputs[-1].text
    assert outputs[-1].text == letters([(1 + i) % 5 for i in range(50)])
    assert len(outputs) < 20


def test_numbers_that_are_not_finite_end_the_request_within_a_draft() -> None:
    class Breaking(CyclingRunner):
        def _hash(self, history: np.ndarray) -> np.ndarray:
            logits = super()._hash(history)
            return logits * np.nan if len(history) == 15 else logits

    engine = make_engine(runner_type=Breaking, prompt_lookup_num_tokens=8)
    (output,) = generate(engine, [[0]], max_new_tokens=50)
    assert (len(output.token_ids), output.finish_reason) == (14, "error")


@pytest.mark.parametrize("seed", range(25))
def test_random_traffic_leaks_nothing_and_changes_no_answer(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {
        "max_num_seqs": rng.randint(1, 6),
        "max_num_batched_tokens": rng.randint(1, 20),
        "block_size": rng.choice([1, 3, 4, 8]),
        "max_model_len": 60,
    }
    # Sometimes barely room for one sequence of max_model_len.
    sizes["num_blocks"] = -(-60 // sizes["block_size"]) + rng.randint(0, 30)
    engine = _engine(rng.randint(1, 12), eos_token_ids=[20, 30], **sizes)
    plain = _engine(0, eos_token_ids=[20, 30], max_model_len=60)
    pairs = run_random_traffic(
        rng,
        engine,
        plain,
        lambda: [rng.randrange(9) for _ in range(rng.randint(1, 35))],
        SAMPLED,
        num_requests=20,
        max_new_tokens=30,
    )
    assert max(engine.runner.rows_per_step) <= sizes["max_num_batched_tokens"]
    for found, expected in pairs:
        assert _facts([found]) == _facts([expected])
