"""What the engine tells of tokens is the log_softmax of the logits, however it runs."""

import random
from typing import Any

import numpy as np
import pytest

from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.logprobs import TokenLogprobs
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.drive import generate, make_engine, run_all
from tests.engine.fake_runner import FakeRunner
from tests.engine.letters import letters
from tests.engine.test_speculation import RepeatingRunner

PROMPTS = [[(7 * n + k) % 9 for k in range(n)] for n in (1, 4, 5, 8, 9, 3, 17, 16)]
SIZES: list[dict[str, int]] = [
    {},
    {"max_num_seqs": 1},
    {"max_num_batched_tokens": 1},
    {"max_num_batched_tokens": 5},
    {"enable_prefix_caching": 0},
    {"num_blocks": 25, "max_num_batched_tokens": 7},
    {"num_blocks": 14, "prompt_lookup_num_tokens": 8},
    {"block_size": 1, "num_blocks": 60},
    {"block_size": 64, "num_blocks": 9, "prompt_lookup_num_tokens": 8},
]


def _oracle(runner: FakeRunner, history: list[int]) -> np.ndarray:
    logits = runner._hash(np.array(history)).astype(np.float32).astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def _check_entry(entry: TokenLogprobs, token_id: int, count: int, expected: np.ndarray) -> None:
    likeliest = np.argsort(-expected)[:count].tolist()
    assert list(entry) == [token_id, *(i for i in likeliest if i != token_id)]
    for listed, found in entry.items():
        assert found.logprob == pytest.approx(expected[listed], abs=1e-5)
        assert found.rank == 1 + int((expected > expected[listed]).sum())
        assert found.decoded_token == letters([listed])


def _check(output: RequestOutput, runner: FakeRunner, count: int, prompt_count: int) -> None:
    tokens = output.prompt_token_ids + output.token_ids
    first = len(output.prompt_token_ids)
    assert output.error is None
    assert output.logprobs is not None
    assert output.prompt_logprobs is not None
    assert len(output.logprobs) == len(output.token_ids)
    assert len(output.prompt_logprobs) == first
    assert output.prompt_logprobs[0] is None
    for place in range(1, len(tokens)):
        is_prompt = place < first
        entry = output.prompt_logprobs[place] if is_prompt else output.logprobs[place - first]
        assert entry is not None
        wanted = prompt_count if is_prompt else count
        _check_entry(entry, tokens[place], wanted, _oracle(runner, tokens[:place]))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    "params", [{}, {"do_sample": True, "temperature": 2.0, "presence_penalty": 1.0}], ids=str
)
def test_of_prompt_and_answer_however_the_engine_runs(
    sizes: dict[str, int], params: dict[str, Any]
) -> None:
    engine = make_engine(runner_type=RepeatingRunner, **sizes)
    plain = generate(
        make_engine(runner_type=RepeatingRunner), PROMPTS, seeds=True, max_tokens=15, **params
    )
    for _ in range(2):  # the second time the prompts are in the cache
        outputs = generate(
            engine, PROMPTS, seeds=True, max_tokens=15, logprobs=3, prompt_logprobs=2, **params
        )
        for output, expected in zip(outputs, plain, strict=True):
            assert output.token_ids == expected.token_ids
            _check(output, engine.runner, 3, 2)
    assert engine.pool.num_free == engine.pool.num_blocks


@pytest.mark.parametrize("seed", range(15))
def test_among_requests_without_them_under_pressure(seed: int) -> None:
    rng = random.Random(seed)
    engine = make_engine(
        runner_type=RepeatingRunner,
        max_num_seqs=rng.randint(1, 6),
        max_num_batched_tokens=rng.randint(1, 20),
        block_size=rng.choice([1, 3, 4, 8]),
        num_blocks=60,
        max_model_len=60,
        prompt_lookup_num_tokens=rng.choice([0, 8]),
    )
    asked: dict[str, dict[str, int]] = {}
    outputs: dict[str, RequestOutput] = {}
    for number in range(20):
        counts = {"logprobs": rng.randint(0, 3), "prompt_logprobs": rng.randint(0, 3)}
        asked[str(number)] = counts if rng.random() < 0.5 else {}
        prompt = [rng.randrange(3) for _ in range(rng.randint(1, 35))]
        params = SamplingParams(max_tokens=rng.randint(1, 20), **asked[str(number)])
        engine.add_request(str(number), prompt, params)
        for _ in range(rng.randint(0, 4)):
            outputs |= {output.request_id: output for output in engine.step()}
    outputs |= {output.request_id: output for output in run_all(engine)}
    for request_id, counts in asked.items():
        output = outputs[request_id]
        if counts:
            _check(output, engine.runner, counts["logprobs"], counts["prompt_logprobs"])
        else:
            assert (output.logprobs, output.prompt_logprobs) == (None, None)


def test_every_output_has_those_of_its_own_tokens() -> None:
    engine = make_engine(runner_type=RepeatingRunner, prompt_lookup_num_tokens=8)
    engine.add_request("a", [0, 1, 2], SamplingParams(max_tokens=30, logprobs=0))
    outputs = run_all(engine)
    deltas = [entry for output in outputs for entry in output.delta_logprobs or []]
    assert deltas == outputs[-1].logprobs
    assert len(outputs) < 30
    for output in outputs:
        entries = output.delta_logprobs or []
        assert [next(iter(entry)) for entry in entries] == output.delta_token_ids


def test_all_tokens_of_the_vocabulary_can_be_asked_for() -> None:
    (output,) = generate(make_engine(), [[1, 2]], max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    assert output.logprobs is not None
    assert output.logprobs[0].keys() == set(range(50))
    total = sum(np.exp(entry.logprob) for entry in output.logprobs[0].values())
    assert total == pytest.approx(1)


def test_vllms_form_sums_them_up() -> None:
    (output,) = generate(make_engine(), [[1, 2]], max_tokens=4, logprobs=1)
    (completion,) = output.outputs
    assert output.logprobs is not None
    own = [entry[i].logprob for i, entry in zip(output.token_ids, output.logprobs, strict=True)]
    assert completion.cumulative_logprob == pytest.approx(sum(own))
    assert completion.logprobs == output.logprobs
    (without,) = generate(make_engine(), [[1, 2]], max_tokens=4)
    assert (without.outputs[0].cumulative_logprob, without.outputs[0].logprobs) == (None, None)


@pytest.mark.parametrize("prompt_len", [1, 4, 9])
def test_a_prompt_that_is_in_the_cache_is_computed_again_once(prompt_len: int) -> None:
    engine = make_engine()
    prompt = list(range(prompt_len))
    generate(engine, [prompt], max_tokens=1)
    before = sum(engine.runner.rows_per_step)
    (output,) = generate(engine, [prompt], max_tokens=1, prompt_logprobs=0)
    assert sum(engine.runner.rows_per_step) - before == prompt_len
    (again,) = generate(engine, [prompt], max_tokens=1)
    assert (output.num_cached_tokens, again.num_cached_tokens) == (0, (prompt_len - 1) // 4 * 4)


def test_numbers_of_the_prompt_that_are_none_end_the_request_alone() -> None:
    class Breaking(FakeRunner):
        def _hash(self, history: np.ndarray) -> np.ndarray:
            logits = super()._hash(history)
            return logits * np.nan if history[0] == 9 and len(history) == 2 else logits

    engine = make_engine(runner_type=Breaking, max_num_batched_tokens=3)
    bad, good = generate(engine, [[9, 1, 2, 3, 4], [1, 2]], max_tokens=3, prompt_logprobs=0)
    assert "is not a number" in (bad.error or "")
    assert good.finish_reason == "length"
    assert engine.pool.num_free == engine.pool.num_blocks


def _interrupted(engine: LLMEngine) -> list[RequestOutput]:
    """Run to the end, with a Ctrl-C in the middle of every second step."""
    execute, outputs, number = engine.runner.execute, [], 0

    def interrupt(batch: Any) -> np.ndarray:
        nonlocal number
        number += 1
        logits = execute(batch)
        if number % 2:
            raise KeyboardInterrupt
        return logits

    engine.runner.execute = interrupt  # type: ignore[method-assign]
    while engine.has_unfinished():
        try:
            outputs += engine.step()
        except KeyboardInterrupt:
            continue
    return outputs


def test_interrupted_steps_tell_nothing_twice() -> None:
    engine = make_engine(max_num_batched_tokens=3)
    for index, prompt in enumerate(PROMPTS):
        params = SamplingParams(max_tokens=5, logprobs=1, prompt_logprobs=1)
        engine.add_request(str(index), prompt, params)
    finished = [output for output in _interrupted(engine) if output.finished]
    assert len(finished) == len(PROMPTS)
    for output in finished:
        _check(output, engine.runner, 1, 1)
