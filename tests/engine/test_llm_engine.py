import signal
from collections.abc import Iterator

import numpy as np
import pytest

from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine import answer_sampler
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.running_request import RunningSample
from mindformers_glm.engine.sampler import sample_token
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.sequence import Sequence
from tests.engine.drive import generate, make_engine, run_all
from tests.engine.fake_runner import FakeRunner, answer
from tests.engine.letters import LetterTokenizer, letters

PROMPT = [3, 1, 4, 1, 5]
TOKENS = answer(PROMPT, 12)


def test_the_answers_tokens_are_different_enough_for_these_tests() -> None:
    assert len(set(TOKENS[:6])) == 6


def test_an_answer_ends_at_max_new_tokens() -> None:
    (output,) = generate(make_engine(), [PROMPT], max_new_tokens=4)
    assert output.token_ids == TOKENS[:4]
    assert output.text == letters(TOKENS[:4])
    assert (output.finished, output.finish_reason, output.error) == (True, "length", None)
    assert output.prompt_token_ids == PROMPT


def test_max_length_counts_the_prompt() -> None:
    (output,) = generate(make_engine(), [PROMPT], max_length=8)
    assert output.token_ids == TOKENS[:3]


def test_max_new_tokens_beats_max_length() -> None:
    (output,) = generate(make_engine(), [PROMPT], max_length=6, max_new_tokens=3)
    assert output.token_ids == TOKENS[:3]


def test_an_answer_ends_at_max_model_len() -> None:
    (output,) = generate(make_engine(max_model_len=9), [PROMPT], max_new_tokens=50)
    assert (output.token_ids, output.finish_reason) == (TOKENS[:4], "length")


def test_an_end_of_text_token_ends_the_answer_and_is_not_text() -> None:
    engine = make_engine(eos_token_ids=[TOKENS[2], 49])
    (output,) = generate(engine, [PROMPT], max_new_tokens=9)
    assert (output.token_ids, output.finish_reason) == (TOKENS[:3], "stop")
    assert output.text == letters(TOKENS[:2])


def test_places_of_special_tokens_are_kept() -> None:
    first, second = TOKENS[2], TOKENS[4]
    other = TOKENS[0]  # begins no message
    names = dict.fromkeys([first, second, TOKENS[5]], "<|assistant|>") | {other: "<mark>"}
    engine = make_engine(eos_token_ids=[TOKENS[5]], special_token_names=names)
    engine.add_request("a", PROMPT, SamplingParams(max_new_tokens=9))
    outputs = run_all(engine)
    place = len(letters(TOKENS[1:2]))
    after = place + len(letters(TOKENS[3:4]))
    assert [output.turn_starts for output in outputs] == [
        *[(), (), (place,), (place,), (place, after), (place, after)]
    ]
    assert outputs[-1].text == letters(TOKENS[1:2] + TOKENS[3:4])
    assert [mark.name for mark in outputs[-1].answer.marks.since(0)] == [
        *["<mark>", "<|assistant|>", "<|assistant|>"]
    ]


def test_special_tokens_can_be_shown() -> None:
    names = {TOKENS[0]: "<mark>", TOKENS[2]: "<|assistant|>", TOKENS[5]: "<|user|>"}
    engine = make_engine(eos_token_ids=[TOKENS[5]], special_token_names=names)
    (output,) = generate(engine, [PROMPT], max_tokens=9, skip_special_tokens=False)
    before = "<mark>" + letters(TOKENS[1:2])
    assert output.text == before + "<|assistant|>" + letters(TOKENS[3:5])
    assert output.turn_starts == (len(before),)
    (stopped,) = generate(
        engine, [PROMPT], max_tokens=9, skip_special_tokens=False, stop="<|assist"
    )
    assert (stopped.text, stopped.stop_reason) == (before, "<|assist")


def test_a_place_behind_held_back_text_counts_that() -> None:
    engine = make_engine(special_token_names={TOKENS[2]: "<|assistant|>"})
    stop = letters(TOKENS[1:2] + TOKENS[3:4]) + "zz"  # holds back all from TOKENS[1] on
    engine.add_request("a", PROMPT, SamplingParams(max_new_tokens=4, stop=stop))
    outputs = run_all(engine)
    place = len(letters(TOKENS[:2]))
    assert (outputs[2].text, outputs[2].turn_starts) == (letters(TOKENS[:1]), (place,))
    assert (outputs[3].text, outputs[3].turn_starts) == (
        letters(TOKENS[:2] + TOKENS[3:4]),
        (place,),
    )


def test_end_of_text_tokens_can_be_ignored() -> None:
    engine = make_engine(eos_token_ids=[TOKENS[2]])
    (output,) = generate(engine, [PROMPT], max_new_tokens=5, ignore_eos=True)
    assert output.token_ids == TOKENS[:5]


def test_a_stop_token_of_the_request_ends_the_answer() -> None:
    params = SamplingParams(max_new_tokens=9, stop_token_ids=[TOKENS[1]])
    engine = make_engine()
    engine.add_request("a", PROMPT, params)
    assert run_all(engine)[-1].token_ids == TOKENS[:2]


def test_stop_token_ids_outside_the_vocabulary_never_come() -> None:
    (output,) = generate(
        make_engine(eos_token_ids=[10**6]), [PROMPT], max_new_tokens=2, min_new_tokens=1
    )
    assert output.token_ids == TOKENS[:2]


def test_a_stop_string_cuts_the_text_before_it() -> None:
    stop = letters(TOKENS[2:4])
    (output,) = generate(make_engine(), [PROMPT], max_new_tokens=9, stop=[stop])
    assert output.text == letters(TOKENS[:2])
    assert (output.token_ids, output.finish_reason) == (TOKENS[:4], "stop")


def test_deltas_add_up_and_never_show_part_of_a_stop_string() -> None:
    stop = letters(TOKENS[4:6])
    engine = make_engine()
    engine.add_request("a", PROMPT, SamplingParams(max_new_tokens=9, stop=stop))
    outputs = run_all(engine)
    assert len(outputs) == 6
    assert "".join(output.delta_text for output in outputs) == outputs[-1].text
    assert all(letters(TOKENS[:4]).startswith(output.text) for output in outputs)
    assert [len(output.token_ids) for output in outputs] == [1, 2, 3, 4, 5, 6]


def test_held_back_text_is_shown_when_the_answer_ends() -> None:
    stop = letters(TOKENS[3:4]) + "?"
    (output,) = generate(make_engine(), [PROMPT], max_new_tokens=4, stop=[stop])
    assert (output.text, output.finish_reason) == (letters(TOKENS[:4]), "length")


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "The prompt is empty"),
        (list(range(20)), {}, "The prompt has 20 tokens and the limit is max_model_len=20"),
        ([1, 50], {}, "Token id 50 of the prompt is outside the vocabulary 0..49"),
        ([-1], {}, "Token id -1"),
        ([1.5], {}, "must hold whole numbers, got 1.5"),
        ([1, 2, 3], {"max_length": 3}, "The prompt has 3 tokens and max_length=3"),
    ],
)
def test_a_bad_prompt_is_refused_alone(
    prompt: list[int], params: dict[str, int], message: str
) -> None:
    engine = make_engine(max_model_len=20)
    engine.add_request("good", PROMPT, SamplingParams(max_new_tokens=2))
    with pytest.raises(PromptError) as caught:
        engine.add_request("bad", prompt, SamplingParams(**params))
    assert message in str(caught.value)
    assert run_all(engine)[-1].token_ids == TOKENS[:2]


def test_the_longest_possible_prompt_gets_one_token() -> None:
    (output,) = generate(make_engine(max_model_len=6), [PROMPT])
    assert output.token_ids == TOKENS[:1]


def test_a_bad_prompt_does_not_shift_the_draws_of_others() -> None:
    def draw(bad_first: bool) -> list[int]:
        engine = make_engine()
        with pytest.raises(PromptError):
            engine.add_request("bad", [] if bad_first else [99])
        engine.add_request("good", PROMPT, SamplingParams(max_new_tokens=9, temperature=2.0))
        return run_all(engine)[-1].token_ids

    assert draw(True) == draw(False)


def test_a_request_id_in_use_is_refused() -> None:
    engine = make_engine()
    engine.add_request("a", PROMPT)
    with pytest.raises(ValueError, match="'a' is already running"):
        engine.add_request("a", PROMPT)


def test_a_request_too_large_for_the_cache_ends_with_a_reason_and_others_go_on() -> None:
    engine = make_engine(num_blocks=3)
    outputs = generate(engine, [list(range(13)), PROMPT], max_new_tokens=3)
    assert outputs[0].finish_reason == "error"
    assert "has 13 tokens, the whole KV cache has room for 12" in (outputs[0].error or "")
    assert outputs[1].token_ids == TOKENS[:3]


def test_a_request_that_outgrows_the_cache_keeps_what_it_has() -> None:
    (output,) = generate(make_engine(num_blocks=2), [PROMPT], max_new_tokens=20)
    assert (output.token_ids, output.text) == (TOKENS[:4], letters(TOKENS[:4]))
    assert output.finish_reason == "error"


def test_an_aborted_request_returns_what_it_has() -> None:
    engine = make_engine()
    engine.add_request("a", PROMPT)
    engine.step()
    engine.step()
    output = engine.abort("a")
    assert output is not None
    assert (output.token_ids, output.finish_reason) == (TOKENS[:2], "abort")
    assert not engine.has_unfinished()
    assert engine.pool.num_free == engine.pool.num_blocks
    assert engine.abort("a") is None


def test_a_step_with_nothing_to_do_does_nothing() -> None:
    assert make_engine().step() == []


class _RunnerWithBadRow(FakeRunner):
    """Gives NaN to the sequence whose last token is 7."""

    def execute(self, batch: ModelBatch) -> np.ndarray:
        logits = super().execute(batch)
        logits[batch.token_ids[batch.sample_rows] == 7] = np.nan
        return logits


def test_nan_ends_its_own_request_only() -> None:
    config = make_engine().config
    runner = _RunnerWithBadRow()
    runner.allocate_kv_cache(config.num_blocks)
    engine = LLMEngine(runner, config, LetterTokenizer(), [])
    outputs = generate(engine, [[1, 7], PROMPT], max_new_tokens=1)
    assert outputs[0].finish_reason == "error"
    assert "is not a number" in (outputs[0].error or "")
    assert outputs[1].token_ids == TOKENS[:1]
    assert engine.pool.num_free == engine.pool.num_blocks


def _break_at(monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    """Let sampling have a defect, once."""
    num_calls = 0

    def broken_once(logits: np.ndarray, sequence: Sequence, allowed: None) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls == at_call:
            raise ZeroDivisionError("of the test")
        return sample_token(logits, sequence)

    monkeypatch.setattr(answer_sampler, "sample_token", broken_once)


@pytest.mark.parametrize("at_call", [1, 2, 5])
def test_a_defect_while_sampling_ends_its_own_request_only(
    monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    engine = make_engine()
    _break_at(monkeypatch, at_call)
    outputs = generate(engine, [PROMPT] * 3, max_new_tokens=5)
    (failed,) = [output for output in outputs if output.finish_reason == "error"]
    assert failed.error == "internal error, ZeroDivisionError: of the test"
    assert failed.token_ids == TOKENS[: len(failed.token_ids)]
    assert [out.token_ids for out in outputs if out is not failed] == [TOKENS[:5]] * 2
    assert engine.pool.num_free == engine.pool.num_blocks


def test_a_defect_of_text_that_is_held_back_ends_its_own_request_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()
    flush, num_calls = RunningSample.flush_text, 0

    def broken_once(sample: RunningSample) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise ZeroDivisionError("of the test")
        flush(sample)

    monkeypatch.setattr(RunningSample, "flush_text", broken_once)
    outputs = generate(engine, [PROMPT] * 2, max_new_tokens=5)
    assert [output.finish_reason for output in outputs] == ["error", "length"]
    assert engine.pool.num_free == engine.pool.num_blocks


def test_a_defect_on_one_of_several_ranks_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(model_parallel=2)
    _break_at(monkeypatch, 1)
    with pytest.raises(ZeroDivisionError):
        generate(engine, [PROMPT], max_new_tokens=5)


class _BreakingRunner(FakeRunner):
    """Fails in its third step."""

    def execute(self, batch: ModelBatch) -> np.ndarray:
        logits = super().execute(batch)
        if len(self.rows_per_step) == 3:
            raise KeyboardInterrupt
        return logits


def test_a_step_that_was_interrupted_can_be_repeated() -> None:
    config = make_engine().config
    runner = _BreakingRunner()
    runner.allocate_kv_cache(config.num_blocks)
    engine = LLMEngine(runner, config, LetterTokenizer(), [])
    engine.add_request("a", PROMPT, SamplingParams(max_new_tokens=5))
    engine.step()
    engine.step()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert run_all(engine)[-1].token_ids == TOKENS[:5]


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """Python's own handler: the command line installs others in the process of the tests."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("is_signal", [False, True])
@pytest.mark.parametrize("at_call", [1, 2, 3])
def test_an_interrupt_while_tokens_are_sampled_loses_none(
    monkeypatch: pytest.MonkeyPatch, at_call: int, is_signal: bool
) -> None:
    engine = make_engine()
    for name in "abc":
        engine.add_request(name, PROMPT, SamplingParams(max_new_tokens=5))
    engine.step()
    num_calls = 0

    def interrupted_once(logits: np.ndarray, sequence: Sequence, allowed: None) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls == at_call:
            if not is_signal:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)
        return sample_token(logits, sequence)

    monkeypatch.setattr(answer_sampler, "sample_token", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    last = {output.request_id: output for output in run_all(engine)}
    assert {name: output.token_ids for name, output in last.items()} == dict.fromkeys(
        "abc", TOKENS[:5]
    )


def test_open_settings_come_from_the_defaults() -> None:
    config = make_engine().config
    runner = FakeRunner()
    runner.allocate_kv_cache(config.num_blocks)
    defaults = GenerationDefaults(SamplingParams(max_new_tokens=3))
    engine = LLMEngine(runner, config, LetterTokenizer(), [], defaults)
    engine.add_request("a", PROMPT)
    assert run_all(engine)[-1].token_ids == TOKENS[:3]
