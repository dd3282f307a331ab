"""Prompts and streams through `LLM`, over a real folder and the fake runner."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from mindformers_glm.core.errors import ConfigError, GlmError, PromptError
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.e2e.random_checkpoint import CONTEXT
from tests.engine.conftest import SHORT, VOCAB, ids_of
from tests.engine.fake_runner import answer


def test_one_prompt_gives_a_list_of_one(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    (output,) = llm.generate("abc", SHORT)
    assert output.prompt_token_ids == ids_of("abc", llm)
    assert output.token_ids == answer(ids_of("abc", llm), 6, VOCAB, stop=(256,))
    assert output.text == llm.tokenizer.decode(output.token_ids)


def test_prompts_keep_their_order_and_run_as_alone(checkpoint: Path) -> None:
    prompts = ["a" * n for n in (1, 30, 4, 33, 32)]
    llm = LLM(checkpoint, max_num_seqs=2, max_num_batched_tokens=8)
    together = llm.generate(prompts, SHORT)
    alone = [LLM(checkpoint).generate(prompt, SHORT)[0] for prompt in prompts]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]


def test_token_ids_are_taken_as_they_are(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    assert llm.generate([5, 6], SHORT)[0].prompt_token_ids == [5, 6]
    assert [o.prompt_token_ids for o in llm.generate([[5], [6, 7]], SHORT)] == [[5], [6, 7]]


def test_arrays_of_token_ids_are_prompts(checkpoint: Path) -> None:
    outputs = LLM(checkpoint).generate(np.array([[5, 6], [7, 8]]), SHORT)  # type: ignore[arg-type]
    assert [output.prompt_token_ids for output in outputs] == [[5, 6], [7, 8]]


@pytest.mark.parametrize("prompt", [None, 1.5, {1, 2}, b"abc", np.array(5)])
def test_a_prompt_of_another_type_is_refused(checkpoint: Path, prompt: Any) -> None:
    bad, good = LLM(checkpoint).generate([prompt, "a"], SHORT)
    assert "A prompt must be a text, a list of token ids or a list of" in (bad.error or "")
    assert good.error is None


@pytest.mark.parametrize("prompts", [np.array(5), np.array("abc"), 5, {"a"}, b"abc"])
def test_what_holds_no_prompts_is_refused_as_a_whole(checkpoint: Path, prompts: Any) -> None:
    with pytest.raises(PromptError, match=r"generate\(\) takes a text, token ids, messages, or a"):
        LLM(checkpoint).generate(prompts, SHORT)


@pytest.mark.parametrize(
    "prompts", [["a", "b"], ["a"], [[1, 2], [3]], np.array([[1, 2], [3, 4]]), [[{"role": "user"}]]]
)
def test_a_stream_of_several_prompts_is_refused(checkpoint: Path, prompts: Any) -> None:
    with pytest.raises(PromptError, match=r"stream\(\) answers one prompt, got a list of \d"):
        next(LLM(checkpoint).stream(prompts, SHORT))


@pytest.mark.parametrize("tools", [5, "search", {"type": "function"}, [5], True])
def test_tools_of_another_type_are_refused_by_name(checkpoint: Path, tools: Any) -> None:
    with pytest.raises(ConfigError, match="tools must be a list of "):
        LLM(checkpoint).chat([{"role": "user", "content": "a"}], SHORT, tools=tools)


def test_a_text_that_cannot_be_encoded_does_not_shift_the_draws_of_others(checkpoint: Path) -> None:
    warm = SamplingParams(temperature=2.0, max_new_tokens=8)
    bad_text, bad_ids = (
        LLM(checkpoint).generate([bad, "a"], warm) for bad in ("\ud800", [VOCAB + 1])
    )
    assert [outputs[0].finish_reason for outputs in (bad_text, bad_ids)] == ["error", "error"]
    assert bad_text[1].token_ids == bad_ids[1].token_ids


def test_a_longer_max_model_len_is_advised_where_there_is_one(checkpoint: Path) -> None:
    advice = f"shorten it or raise max_model_len (up to {CONTEXT})."
    for length in (CONTEXT, 20):
        llm = LLM(checkpoint, max_model_len=length)
        (output,) = llm.generate("b" * CONTEXT, SHORT)
        assert (output.error or "").endswith(advice if length == 20 else "together: shorten it.")
        with pytest.raises(PromptError) as error:
            llm.logits([1] * (CONTEXT + 1))
        assert str(error.value).endswith(advice if length == 20 else ": shorten it.")


def test_no_prompts_no_outputs(checkpoint: Path) -> None:
    assert LLM(checkpoint).generate([]) == []


def test_a_bad_prompt_keeps_its_place_and_the_others_run(checkpoint: Path) -> None:
    outputs = LLM(checkpoint).generate(["a", "b" * CONTEXT, "", "c"], SHORT)
    assert [output.finish_reason == "error" for output in outputs] == [False, True, True, False]
    assert "The prompt has 64 tokens and the limit is max_model_len=64" in (outputs[1].error or "")
    assert "The prompt is empty" in (outputs[2].error or "")
    assert outputs[1].text == ""


def test_each_prompt_can_have_its_own_params(checkpoint: Path) -> None:
    params = [SamplingParams(max_new_tokens=count) for count in (1, 3)]
    outputs = LLM(checkpoint).generate(["a", "b"], params)
    assert [len(output.token_ids) for output in outputs] == [1, 3]
    with pytest.raises(ConfigError, match="2 sampling_params were given for 3 prompts"):
        LLM(checkpoint).generate(["a", "b", "c"], params)


def test_a_run_can_be_repeated(checkpoint: Path) -> None:
    params = SamplingParams(temperature=2.0, max_new_tokens=8)

    def run(seed: int) -> list[list[int]]:
        return [
            output.token_ids for output in LLM(checkpoint, seed=seed).generate(["a", "a"], params)
        ]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_generation_config_is_respected(checkpoint: Path, edit: Callable[..., None]) -> None:
    edit("generation_config.json", max_new_tokens=2)
    llm = LLM(checkpoint)
    assert len(llm.generate("a")[0].token_ids) == 2
    assert len(llm.generate("a", SHORT)[0].token_ids) == 6


def test_end_of_text_is_the_union_of_what_three_files_say(
    checkpoint: Path, edit: Callable[..., None]
) -> None:
    llm = LLM(checkpoint)
    first, second, third = (answer(ids_of(text, llm), 1, VOCAB)[0] for text in "abc")
    edit("config.json", eos_token_id=first)
    edit("generation_config.json", eos_token_id=[second])
    vocabulary = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    edit("tokenizer_config.json", eos_token=vocabulary.id_to_token(third))
    outputs = LLM(checkpoint).generate(["a", "b", "c"], SHORT)
    assert [output.finish_reason for output in outputs] == ["stop"] * 3
    assert [output.token_ids for output in outputs] == [[first], [second], [third]]


def test_512_new_tokens_are_noted_once(
    checkpoint: Path, edit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    llm = LLM(checkpoint)
    llm.generate("a", SHORT)
    assert "512 tokens" not in capsys.readouterr().err
    llm.generate(["a", "b"])
    llm.generate("c")
    assert capsys.readouterr().err.count("answers end after 512 tokens") == 1


def test_a_stream_adds_up_to_the_answer(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    outputs = list(llm.stream("abc", SHORT))
    (whole,) = llm.generate("abc", SHORT)
    assert "".join(output.delta_text for output in outputs) == outputs[-1].text == whole.text
    assert outputs[-1].finish_reason == whole.finish_reason
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


def test_streams_can_be_read_in_turns(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    alone = [list(llm.stream(text, SHORT)) for text in ("ab", "cde")]
    first, second = llm.stream("ab", SHORT), llm.stream("cde", SHORT)
    turns: list[list[Any]] = [[next(first), next(first)], []]
    turns[1] += [next(second)]
    whole = llm.generate("ab", SHORT)  # steps the other two as well
    turns[1] += list(second)
    turns[0] += list(first)
    for found, expected in zip(turns, alone, strict=True):
        assert [output.token_ids for output in found] == [o.token_ids for o in expected]
    assert whole[0].token_ids == alone[0][-1].token_ids


def test_leaving_a_stream_ends_its_request(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    stream = llm.stream("abc", SHORT)
    next(stream)
    stream.close()
    assert not llm.engine.has_unfinished()
    assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_a_bad_prompt_streams_its_error(checkpoint: Path) -> None:
    (output,) = LLM(checkpoint).stream("", SHORT)
    assert (output.finish_reason, output.delta_text) == ("error", "")


def test_an_interrupted_run_leaves_nothing_behind(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(checkpoint)
    expected = llm.generate("abc", SHORT)[0].token_ids

    def interrupt(batch: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "execute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["abc", "de"], SHORT)
    assert not llm.engine.has_unfinished()
    assert llm.generate("abc", SHORT)[0].token_ids == expected


def test_a_closed_llm_says_so(checkpoint: Path) -> None:
    with LLM(checkpoint) as llm:
        llm.generate("a", SHORT)
        stream = llm.stream("a", SHORT)
        next(stream)
    with pytest.raises(GlmError, match="This LLM is closed"):
        llm.generate("a", SHORT)
    with pytest.raises(GlmError, match="This LLM is closed"):
        next(stream)


@pytest.mark.parametrize("prompts", [None, 5, {"a"}, (text for text in "ab"), b"abc"])
def test_prompts_that_are_no_list_are_refused(checkpoint: Path, prompts: Any) -> None:
    with pytest.raises(PromptError, match=r"generate\(\) takes a text, token ids, messages"):
        LLM(checkpoint).generate(prompts)


@pytest.mark.parametrize("params", [{"temperature": 1}, [{"temperature": 1}], 5])
def test_sampling_params_of_another_type_are_refused(checkpoint: Path, params: Any) -> None:
    with pytest.raises(ConfigError, match="sampling_params must be SamplingParams"):
        LLM(checkpoint).generate(["a"], params)


def test_steps_tell_each_prompts_outputs_by_its_place(checkpoint: Path) -> None:
    llm = LLM(checkpoint, max_num_seqs=2)
    prompts = ["abc", "de", "", "f"]
    whole = llm.generate(prompts, SHORT)
    llm.generate("x", SHORT)  # numbers of requests are not places
    streamed = [""] * len(prompts)
    finished: dict[int, Any] = {}
    for step in llm.generate_steps(prompts, SHORT):
        for place, output in step:
            streamed[place] += output.delta_text
            if output.finished:
                finished[place] = output
    assert streamed == [output.text for output in whole]
    found = [finished[place].finish_reason for place in range(4)]
    assert found == [output.finish_reason for output in whole]
    assert found[2] == "error"


def test_leaving_the_steps_early_ends_all_requests(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    steps = llm.generate_steps(["abc", "de"], SHORT)
    next(steps)
    next(steps)
    steps.close()
    assert not llm.engine.has_unfinished()


def test_times_count_what_was_generated(checkpoint: Path) -> None:
    llm = LLM(checkpoint, enable_prefix_caching=False, max_num_batched_tokens=2)
    llm.warm_up()
    outputs = llm.generate(["abcdef", "gh"], SHORT)
    num_new = sum(len(output.token_ids) for output in outputs)
    assert llm.times.num_prompt_tokens == sum(len(output.prompt_token_ids) for output in outputs)
    assert llm.times.num_new_tokens == num_new
    assert llm.times.num_first_tokens == 2
    assert llm.times.prompt_s > 0
    assert llm.times.answer_s > 0


def test_streamed_text_is_the_saved_text_for_500_prompts(checkpoint: Path) -> None:
    # The answers are random bytes: most characters are whole only after several steps, or never.
    rng = random.Random(0)
    prompts = ["".join(rng.choices("北京🙂é👩‍👧a ", k=rng.randrange(1, 9))) for _ in range(500)]
    llm = LLM(checkpoint, max_num_seqs=32)
    streamed = [""] * len(prompts)
    saved: dict[int, str] = {}
    for step in llm.generate_steps(prompts, SamplingParams(max_new_tokens=12)):
        for place, output in step:
            streamed[place] += output.delta_text
            if output.finished:
                saved[place] = output.text
    assert [saved[place] for place in range(500)] == streamed
    assert len(set(streamed)) > 400
