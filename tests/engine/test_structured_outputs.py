"""Answers that must have a form, through the whole engine on the fake runner.

The network's logits are random for each history, so nothing but the form makes answers that have
it; and equal histories have equal logits, so an answer must not depend on how it was run.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")

from tokenizers import Tokenizer

from mindformers_glm.engine import answer_sampler
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.e2e.random_checkpoint import write_checkpoint
from tests.engine.conftest import VOCAB, ids_of

_SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "n": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["ab", "cd"]}, "maxItems": 3},
    },
    "required": ["ok", "n"],
    "additionalProperties": False,
}
_FORMS: list[dict[str, Any]] = [
    {"json": _SCHEMA},
    {"json": _SCHEMA, "disable_any_whitespace": True},
    {"regex": "[a-d]{2,20}[0-9]{3}"},
    {"choice": ["yes", "no", "maybe so"]},
    {"grammar": 'start: "(" start ")" | NUMBER\nNUMBER: /[0-9]{1,2}/'},
]


@pytest.fixture
def open_llm(checkpoint: Path, edit: Callable[..., None]) -> Callable[..., LLM]:
    edit("config.json", max_position_embeddings=2_000)

    def open_llm(**settings: Any) -> LLM:
        return LLM(checkpoint, **{"max_model_len": 1_000, "block_size": 4} | settings)

    return open_llm


def _params(form: dict[str, Any] | None, **settings: Any) -> SamplingParams:
    return SamplingParams(structured_outputs=form, **{"max_tokens": 300} | settings)


def _check(output: RequestOutput, form: dict[str, Any] | None) -> None:
    """A finished answer has its form."""
    if form is None or output.finish_reason == "length":
        return
    assert output.finish_reason == "stop", output.error
    if "json" in form:
        value = json.loads(output.text)
        assert {"ok", "n"} <= value.keys() <= {"ok", "n", "tags"}
        assert value["ok"] in (True, False)
        assert 0 <= value["n"] < 1000
        assert {*value.get("tags", [])} <= {"ab", "cd"}
        assert not form.get("disable_any_whitespace") or not re.search(r"\s", output.text)
    elif "regex" in form:
        assert re.fullmatch(form["regex"], output.text)
    elif "choice" in form:
        assert output.text in form["choice"]
    else:
        assert re.fullmatch(r"\(*[0-9]{1,2}\)*", output.text)
        assert output.text.count("(") == output.text.count(")")


def _prompts(llm: LLM, count: int) -> list[list[int]]:
    return [ids_of(f"prompt {number} " * (1 + number % 3), llm) for number in range(count)]


_SAMPLED = [{"seed": 3, "temperature": 1.0, "top_k": 0}, {"seed": 3, "top_p": 0.5, "top_k": 5}, {}]


@pytest.mark.parametrize("sampled", _SAMPLED, ids=["sampled", "narrow", "greedy"])
def test_answers_have_their_form_and_do_not_depend_on_how_they_run(
    open_llm: Callable[..., LLM], sampled: dict[str, Any]
) -> None:
    """Alone, in a batch with free ones, guessed ahead, in chunks, from cached beginnings."""
    with open_llm(prompt_lookup_num_tokens=0, enable_prefix_caching=False) as llm:
        prompts = _prompts(llm, 12)
        forms = [([*_FORMS, None])[number % 6] for number in range(12)]
        params = [_params(form, **sampled) for form in forms]
        alone = [llm.generate([p], s)[0] for p, s in zip(prompts, params, strict=True)]
    assert sum(output.finish_reason == "stop" for output in alone) > 6
    for output, form in zip(alone, forms, strict=True):
        _check(output, form)
    for settings in (
        {"prompt_lookup_num_tokens": 0},
        {"prompt_lookup_num_tokens": 30},
        {"max_num_batched_tokens": 9, "max_num_seqs": 3, "prompt_lookup_num_tokens": 5},
    ):
        with open_llm(**settings) as llm:
            together = llm.generate(prompts, params)
            again = llm.generate(prompts, params)
        for one, other, third in zip(alone, together, again, strict=True):
            assert other.token_ids == one.token_ids == third.token_ids
            assert other.finish_reason == one.finish_reason


def test_a_preempted_answer_goes_on_where_it_was(open_llm: Callable[..., LLM]) -> None:
    with open_llm(prompt_lookup_num_tokens=0) as llm:
        prompts = _prompts(llm, 6)
        params = _params(_FORMS[0], seed=1, temperature=1.0, top_k=0)
        expected = [output.token_ids for output in llm.generate(prompts, params)]
        engine = llm.engine
        num_needed = max(len(p) + len(t) for p, t in zip(prompts, expected, strict=True)) // 4 + 2
        held = engine.pool.allocate(engine.pool.num_free - num_needed)
        found = [output.token_ids for output in llm.generate(prompts, params)]
        engine.pool.free(held)
    assert engine.scheduler.num_preemptions > 0
    assert found == expected


def test_guesses_are_taken_within_a_form(open_llm: Callable[..., LLM]) -> None:
    form = {"regex": "(abcdefgh-){12}"}
    with open_llm(prompt_lookup_num_tokens=10) as llm:
        (output,) = llm.generate([ids_of("abcdefgh-", llm)], _params(form))
        assert output.text == "abcdefgh-" * 12
        assert llm.engine.num_accepted > 60


def test_what_there_is_no_choice_about_takes_one_step(open_llm: Callable[..., LLM]) -> None:
    form = {"regex": "[ab]xyz, and so on[cd]"}
    steps = []
    for count in (0, 40):
        with open_llm(prompt_lookup_num_tokens=count) as llm:
            (output,) = llm.generate([ids_of("q", llm)], _params(form))
            assert re.fullmatch(form["regex"], output.text)
            steps.append(llm.times.num_steps)
    assert steps == [16, 2]


def test_samples_of_a_request_have_the_form_each(open_llm: Callable[..., LLM]) -> None:
    with open_llm() as llm:
        params = _params(_FORMS[0], n=5, seed=1, temperature=1.0, top_k=0)
        (output,) = llm.generate(["x"], params)
    assert len({sample.text for sample in output.samples}) == 5
    for sample in output.samples:
        _check(sample, _FORMS[0])


def test_an_answer_that_is_cut_off_says_length(open_llm: Callable[..., LLM]) -> None:
    with open_llm() as llm:
        (output,) = llm.generate(["x"], _params({"regex": "[a-z]{50}"}, max_tokens=10))
        assert output.finish_reason == "length"
        (output,) = llm.generate(["x"], _params({"regex": "[a-z]{10}"}, max_tokens=10))
        assert output.finish_reason == "stop"


@pytest.mark.parametrize("settings", [{}, {"ignore_eos": True}, {"min_tokens": 5}])
def test_an_answer_ends_where_nothing_can_follow(
    open_llm: Callable[..., LLM], settings: dict[str, Any]
) -> None:
    with open_llm() as llm:
        (output,) = llm.generate(["x"], _params({"choice": ["abc"]}, **settings))
    assert (output.text, output.finish_reason, output.stop_reason) == ("abc", "stop", None)


def test_min_tokens_keep_an_answer_going_that_could_end(open_llm: Callable[..., LLM]) -> None:
    with open_llm() as llm:
        params = _params({"regex": "[ab]*"}, min_tokens=40, temperature=1.0, seed=0)
        (output,) = llm.generate(["x"], params)
    assert len(output.text) >= 40
    assert output.finish_reason == "stop"


def test_a_stop_token_ends_an_answer_that_is_complete_and_no_other(
    open_llm: Callable[..., LLM],
) -> None:
    with open_llm() as llm:
        (letter,) = ids_of("a", llm)
        params = _params({"regex": "[ab]{6,40}"}, stop_token_ids=[letter], logit_bias={letter: 99})
        (output,) = llm.generate(["x"], params)
    assert (output.text, output.stop_reason) == ("b" * 6, letter)


def test_a_stop_text_cuts_an_answer_and_is_named(open_llm: Callable[..., LLM]) -> None:
    with open_llm() as llm:
        params = _params({"regex": "(ab){9}c"}, stop=["ba"])
        (output,) = llm.generate(["x"], params)
    assert (output.text, output.finish_reason, output.stop_reason) == ("a", "stop", "ba")


def test_settings_that_leave_no_token_end_the_answer_and_not_the_engine(
    open_llm: Callable[..., LLM],
) -> None:
    with open_llm() as llm:
        params = [_params({"choice": ["abc"]}, bad_words=["b"]), _params({"choice": ["xyz"]})]
        one, other = llm.generate(["x", "y"], params)
        assert one.finish_reason == "error"
        assert "bad_words, stop tokens or min_new_tokens leave none" in str(one.error)
        assert other.text == "xyz"
        assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_a_mask_that_cannot_be_found_ends_the_answer_and_not_the_engine(
    open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindformers_glm.engine.constraints import Constraint

    accept = Constraint.accept

    def fail_at_third(constraint: Constraint, token_id: int) -> None:
        accept(constraint, token_id)
        if constraint.count == 3:  # type: ignore[attr-defined]
            constraint.error = "ParserTooComplex"
        constraint.count += 1  # type: ignore[attr-defined]

    monkeypatch.setattr(Constraint, "count", 0, raising=False)
    monkeypatch.setattr(Constraint, "accept", fail_at_third)
    with open_llm() as llm:
        one, other = llm.generate(
            ["x", "y"], [_params({"regex": "[a-z]{50}"}), _params(None, max_tokens=9)]
        )
        assert one.finish_reason == "error"
        assert "ParserTooComplex" in str(one.error)
        assert other.finish_reason == "length"
        assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_a_defect_in_finding_masks_ends_the_answer_and_not_the_engine(
    open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindformers_glm.engine.constraints import Constraint

    def fail(constraint: Constraint, draft: list[int]) -> None:
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr(Constraint, "compute_masks", fail)
    with open_llm() as llm:
        one, other = llm.generate(
            ["x", "y"], [_params({"regex": "[a-z]{50}"}), _params(None, max_tokens=9)]
        )
        assert one.error == "internal error, ZeroDivisionError: of the test"
        assert other.finish_reason == "length"
        assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_an_interrupt_while_the_network_computes_loses_no_place(
    open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_llm(prompt_lookup_num_tokens=10) as llm:
        params = _params(_FORMS[0], seed=4, temperature=1.0)
        (expected,) = llm.generate([ids_of("x", llm)], params)
        execute, num_calls = llm.engine.runner.execute, 0

        def interrupted(batch: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls % 3 == 0:
                raise KeyboardInterrupt
            return execute(batch)

        monkeypatch.setattr(llm.engine.runner, "execute", interrupted)
        llm.engine.add_request("one", ids_of("x", llm), params)
        last = None
        while llm.engine.has_unfinished():
            try:
                for output in llm.engine.step():
                    last = output
            except KeyboardInterrupt:
                continue
    assert num_calls > 6
    assert last is not None
    assert last.text == expected.text


def test_a_wrong_form_is_the_only_output_of_its_prompt(open_llm: Callable[..., LLM]) -> None:
    with open_llm() as llm:
        one, other = llm.generate(
            ["x", "y"], [_params({"json": {"not": {}}}), _params({"choice": ["ok"]})]
        )
    assert one.finish_reason == "error"
    assert one.error == "The JSON schema: not at # is not supported."
    assert other.text == "ok"


def test_a_folder_without_tokenizer_refuses_a_form(
    checkpoint: Path, open_llm: Callable[..., LLM]
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with open_llm() as llm:
        (output,) = llm.generate([[1, 2]], _params({"choice": ["a"]}))
    assert "structured_outputs are of text" in str(output.error)


_TEMPLATE = (
    "{# </think> #}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<|assistant|>"
    "{{ '<think>\n' if messages[0].content == 'think' }}"
)


def _open_thinking(folder: Path, special_tokens: list[str]) -> LLM:
    write_checkpoint(folder, vocab_size=VOCAB + len(special_tokens), max_position_embeddings=2_000)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    return LLM(folder, max_model_len=1_000, prompt_lookup_num_tokens=0)


@pytest.mark.parametrize("tags", [[], ["<think>", "</think>"]], ids=["text", "tokens"])
@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        ("think", "well {1} < 2 </thin k></think>"),
        ("x", "<think>well {1} < 2 </thin k></think>"),
        ("x", "\n<think>\nwell {1} < 2 </thin k>\n</think>\n"),
        ("x", "\n{"),
    ],
)
def test_only_what_follows_the_thoughts_has_the_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, written: str, tags: list[str]
) -> None:
    sample_token = answer_sampler.sample_token
    with _open_thinking(tmp_path, ["<|assistant|>", *tags]) as llm:
        script = ids_of(written, llm)

        def sample(logits: Any, sequence: Any, allowed: Any) -> int:
            if sequence.num_generated < len(script):
                token_id = script[sequence.num_generated]
                assert allowed[token_id], sequence.num_generated
                return token_id
            return sample_token(logits, sequence, allowed)

        monkeypatch.setattr(answer_sampler, "sample_token", sample)
        params = _params(_FORMS[0], temperature=1.0, seed=2)
        output = llm.chat([{"role": "user", "content": prompt}], params)
    assert output.finish_reason == "stop"
    assert output.reply is not None
    assert output.reply.reasoning == ("well {1} < 2 </thin k>" if "think" in written else "")
    assert {"ok", "n"} <= json.loads(output.reply.content).keys()


def test_thoughts_that_do_not_end_take_the_whole_length(tmp_path: Path) -> None:
    with _open_thinking(tmp_path, ["<|assistant|>"]) as llm:
        messages = [{"role": "user", "content": "think"}]
        output = llm.chat(messages, _params(_FORMS[0], max_tokens=60, logit_bias={256: 100.0}))
    assert output.finish_reason == "length"
    assert output.reply is not None
    assert output.reply.content == ""
