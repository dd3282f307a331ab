"""Several answers to one prompt, and what else SamplingParams asks of the engine."""

import json
from typing import Any

import pytest

from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.drive import generate, make_engine, run_all
from tests.engine.letters import letters
from tests.engine.test_logprobs import SIZES
from tests.engine.test_speculation import CyclingRunner, RepeatingRunner

DRAWN: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "top_k": 0, "max_tokens": 12}


def _engine(**sizes: int) -> LLMEngine:
    return make_engine(runner_type=RepeatingRunner, **sizes)


def _texts(output: RequestOutput) -> list[str]:
    return [completion.text for completion in output.outputs]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("seed", [None, 7])
def test_samples_do_not_depend_on_how_they_run(sizes: dict[str, int], seed: int | None) -> None:
    prompts = [[1, 2, 3], list(range(9)) * 2, [5]]
    expected = generate(_engine(), prompts, n=4, seed=seed, **DRAWN)
    engine = _engine(**sizes)
    found = generate(engine, prompts, n=4, seed=seed, **DRAWN)
    assert [_texts(output) for output in found] == [_texts(output) for output in expected]
    assert all(len({*_texts(output)}) == 4 for output in found)
    assert engine.pool.num_free == engine.pool.num_blocks


def test_the_first_is_the_one_without_others() -> None:
    prompts = [[1, 2, 3], [4, 5]]
    alone = generate(_engine(), prompts, **DRAWN)
    for output, expected in zip(generate(_engine(), prompts, n=3, **DRAWN), alone, strict=True):
        first = output.outputs[0]
        assert (first.token_ids, first.text) == (expected.token_ids, expected.text)
        assert (output.token_ids, output.text) == (expected.token_ids, expected.text)
        assert output.finish_reason == "length"


def test_the_prompt_is_computed_once() -> None:
    engine = _engine()
    generate(engine, [list(range(20))], n=5, do_sample=True, max_tokens=1)
    # Full blocks are shared; the last one is each sample's own, as it goes on in it.
    assert sum(engine.runner.rows_per_step) == 20 + 4 * 4


def test_outputs_grow_one_by_one_and_the_request_ends_with_the_last() -> None:
    engine = _engine(eos_token_ids=[20, 30, 40])
    engine.add_request("a", [1, 2], SamplingParams(n=4, logprobs=0, **DRAWN))
    texts, ids = [""] * 4, [[] for _ in range(4)]
    outputs = run_all(engine)
    for output in outputs:
        assert output.request_id == "a"
        grown = [i for i, sample in enumerate(output.samples) if sample.delta_token_ids]
        assert len(grown) == 1
        for index, sample in enumerate(output.samples):
            texts[index] += sample.delta_text
            ids[index] += sample.delta_token_ids
            assert (sample.text, sample.token_ids) == (texts[index], ids[index])
        assert output.finished == all(sample.finished for sample in output.samples)
    assert outputs[-1].finished
    assert not any(output.finished for output in outputs[:-1])
    assert {output.finish_reason for output in outputs[-1].outputs} <= {"stop", "length"}
    for completion in outputs[-1].outputs:
        assert completion.finished()
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(completion.token_ids)


def test_prompt_logprobs_are_told_once() -> None:
    engine = _engine()
    (output,) = generate(engine, [[1, 2, 3, 4, 5, 6]], n=3, prompt_logprobs=0, **DRAWN)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 6
    assert [sample.prompt_logprobs is None for sample in output.samples] == [False, True, True]


def test_an_abort_ends_all_samples() -> None:
    engine = _engine()
    engine.add_request("a", [1, 2], SamplingParams(n=3, **DRAWN))
    for _ in range(3):
        engine.step()
    output = engine.abort("a")
    assert output is not None
    assert output.finish_reason == "abort"
    assert {completion.finish_reason for completion in output.outputs} == {"abort"}
    assert not engine.has_unfinished()
    assert engine.abort("a") is None
    assert engine.pool.num_free == engine.pool.num_blocks


def test_a_sample_that_does_not_fit_is_the_requests_error() -> None:
    engine = _engine(num_blocks=4, max_num_seqs=1)
    (output,) = generate(engine, [[1, 2, 3]], n=2, **(DRAWN | {"max_tokens": 30}))
    assert output.finish_reason == "error"
    assert "KV cache has room for 16" in (output.error or "")
    assert engine.pool.num_free == engine.pool.num_blocks


def test_greedy_samples_would_be_the_same_and_are_refused() -> None:
    with pytest.raises(PromptError, match="n=2 greedy answers would all be the same: set do_s"):
        _engine().add_request("a", [1], SamplingParams(n=2))


def test_plain_data_has_all_samples() -> None:
    (output,) = generate(_engine(), [[1, 2]], n=2, logprobs=1, **DRAWN)
    plain = json.loads(json.dumps(output.to_dict()))
    assert [entry["text"] for entry in plain["outputs"]] == _texts(output)
    assert plain["text"] == output.text


def test_a_bias_for_no_token_is_refused() -> None:
    with pytest.raises(PromptError, match=r"logit_bias has the token id 50, which is outside .*49"):
        make_engine().add_request("a", [1], SamplingParams(logit_bias={50: 1.0}))


@pytest.mark.parametrize("num_drafted", [0, 8])
def test_a_bias_of_a_hundred_chooses_and_forbids(num_drafted: int) -> None:
    engine = make_engine(runner_type=CyclingRunner, prompt_lookup_num_tokens=num_drafted)
    (chosen,) = generate(engine, [[0]], logit_bias={7: 100.0}, max_tokens=9)
    assert chosen.token_ids == [7] * 9
    (forbidden,) = generate(engine, [[0]], logit_bias={3: -100.0}, max_tokens=30)
    assert 3 not in forbidden.token_ids


@pytest.mark.parametrize("num_drafted", [0, 8])
def test_a_bad_word_is_never_written(num_drafted: int) -> None:
    engine = make_engine(runner_type=CyclingRunner, prompt_lookup_num_tokens=num_drafted)
    (output,) = generate(engine, [[0, 1, 2, 3, 4] * 2], bad_words=["cd"], max_tokens=40)
    assert "cd" not in output.text
    assert output.text.count("abc") > 5


@pytest.mark.parametrize(
    "params",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -1.0, "do_sample": True, "temperature": 1.5},
        {"logit_bias": {3: 4.0, 8: -5.0}, "do_sample": True},
        {"bad_words": ["abc", "e"], "repetition_penalty": 1.2},
        {"min_tokens": 9, "stop_token_ids": [3, 4]},
    ],
    ids=str,
)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_guessing_ahead_and_preemption_change_no_answer(
    params: dict[str, Any], sizes: dict[str, int]
) -> None:
    prompts = [[(7 * n + k) % 9 for k in range(n)] for n in (1, 4, 5, 17)]
    expected = generate(_engine(), prompts, seeds=True, max_tokens=25, **params)
    found = generate(
        _engine(**({"prompt_lookup_num_tokens": 8} | sizes)),
        prompts,
        seeds=True,
        max_tokens=25,
        **params,
    )
    assert [o.token_ids for o in found] == [o.token_ids for o in expected]


def test_what_ended_an_answer_is_told() -> None:
    def reason(**params: Any) -> tuple[Any, Any]:
        engine = make_engine(runner_type=CyclingRunner, eos_token_ids=[3])
        (output,) = generate(engine, [[0]], max_tokens=9, **params)
        (completion,) = output.outputs
        assert completion.stop_reason == output.stop_reason
        return output.finish_reason, output.stop_reason

    assert reason() == ("stop", None)  # the checkpoint's end of text
    assert reason(stop_token_ids=[3]) == ("stop", None)
    assert reason(stop_token_ids=[2]) == ("stop", 2)
    assert reason(stop_token_ids=[0], ignore_eos=True) == ("stop", 0)
    assert reason(stop_token_ids=[3], ignore_eos=True) == ("stop", 3)
    assert reason(stop=["bc", letters([2])]) == ("stop", "bc")
    assert reason(ignore_eos=True) == ("length", None)
