"""Thoughts that are ended by their budget, through the whole engine on the fake runner.

The logits are random for each history: such a network never ends its thoughts by itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine import answer_sampler
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.e2e.random_checkpoint import write_checkpoint
from tests.engine.conftest import VOCAB, ids_of

_CLOSE = "</think>"
_TEMPLATE = (
    "{# </think> #}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<|assistant|>"
    "{{ '<think>\n' if messages[0].content.startswith('think') }}"
)
_TAGS = pytest.mark.parametrize("tags", [[], ["<think>", _CLOSE]], ids=["text", "tokens"])
_FORMS: list[dict[str, Any] | None] = [
    {"json": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
    {"choice": ["yes", "no"]},
    None,
]


def _open(folder: Path, tags: list[str], **settings: Any) -> LLM:
    special = ["<|assistant|>", *tags]
    write_checkpoint(folder, vocab_size=VOCAB + len(special), max_position_embeddings=2_000)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    return LLM(folder, **{"max_model_len": 1_000, "prompt_lookup_num_tokens": 0} | settings)


def _ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _no_chance(tags: list[str]) -> dict[int, float]:
    """A bias against what random text would end, or write a tag, by."""
    return dict.fromkeys(range(VOCAB - 1, VOCAB + 1 + len(tags)), -100.0)


def _script(monkeypatch: pytest.MonkeyPatch, llm: LLM, text: str) -> None:
    """Let the model write a text where it may choose, and then what its logits say."""
    script = ids_of(text, llm)
    sample_token = answer_sampler.sample_token

    def sample(logits: Any, sequence: Any, allowed: Any) -> int:
        place = sequence.num_generated
        if place < len(script):
            return script[place]
        return sample_token(logits, sequence, allowed)

    monkeypatch.setattr(answer_sampler, "sample_token", sample)


def _count_thoughts(token_ids: Sequence[int], llm: LLM) -> int:
    """Tokens before the closing tag."""
    ids, closing = list(token_ids), ids_of(_CLOSE, llm)
    return next(i for i in range(len(ids)) if ids[i : i + len(closing)] == closing)


@_TAGS
def test_thoughts_end_after_so_many_tokens(tmp_path: Path, tags: list[str]) -> None:
    with _open(tmp_path, tags) as llm:
        for budget in (0, 1, 7, 30):
            params = SamplingParams(
                thinking_token_budget=budget, logit_bias=_no_chance(tags), max_tokens=60
            )
            output = llm.chat(_ask("think"), params)
            assert output.error is None
            assert 0 <= _count_thoughts(output.token_ids, llm) - budget <= 3 * (budget > 0)
            assert output.finish_reason == "length"
            assert output.reply is not None
            assert bool(output.reply.reasoning) or budget < 7
            assert output.reply.content


_SCRIPTS = [
    ("think", "abc</think>\nd", 20, "abc"),  # within the budget
    ("x", "hello, no thoughts at all here", 3, ""),
    ("x", "\n<think>", 0, ""),
    ("x", "\n<think>abcdef", 3, "abc"),
    ("think", "a < b </th", 5, "a < b"),
    ("think", "ab北京", 3, "ab北"),
    ("think", "ab北京", 5, "ab北"),
]


@_TAGS
def test_only_thoughts_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tags: list[str]
) -> None:
    with _open(tmp_path, tags) as llm:
        for prompt, written, budget, reasoning in _SCRIPTS:
            with monkeypatch.context() as patch:
                _script(patch, llm, written)
                length = len(ids_of(written, llm)) + 12
                params = SamplingParams(thinking_token_budget=budget, max_tokens=length)
                output = llm.chat(_ask(prompt), params)
            assert output.reply is not None
            assert output.reply.reasoning == reasoning, written
            assert _CLOSE not in output.reply.content


def test_a_closing_tag_that_the_model_has_begun_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path, []) as llm:
        for begun in range(len(_CLOSE)):
            with monkeypatch.context() as patch:
                _script(patch, llm, "ab " + _CLOSE[:begun])
                length = len(_CLOSE) + 3
                params = SamplingParams(thinking_token_budget=3 + begun, max_tokens=length)
                output = llm.chat(_ask("think"), params)
            assert output.text == "ab </think>"
            assert output.reply is not None
            assert (output.reply.reasoning, output.reply.content) == ("ab", "")


@_TAGS
@pytest.mark.parametrize("form", _FORMS[:2], ids=["json", "choice"])
@pytest.mark.parametrize("prompt", ["think", "x"])
def test_what_follows_the_thoughts_has_the_form(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tags: list[str],
    form: dict[str, Any],
    prompt: str,
) -> None:
    pytest.importorskip("llguidance")
    with _open(tmp_path, tags) as llm:
        if prompt == "x":
            _script(monkeypatch, llm, "<think>")
        params = SamplingParams(
            thinking_token_budget=9, max_tokens=200, structured_outputs=form, top_k=0, seed=5
        )
        output = llm.chat(_ask(prompt), params)
    assert output.finish_reason == "stop", output.error
    assert output.reply is not None
    assert output.reply.reasoning
    if "json" in form:
        assert json.loads(output.reply.content)["n"] in (1, 2)
    else:
        assert output.reply.content in form["choice"]


@_TAGS
def test_answers_do_not_depend_on_how_they_run(tmp_path: Path, tags: list[str]) -> None:
    """Alone, together with others, guessed ahead, in small steps, and each of several answers."""
    pytest.importorskip("llguidance")
    prompts = [_ask(f"think {number} " * (1 + number % 3)) for number in range(9)]
    wishes = [
        SamplingParams(
            thinking_token_budget=(0, 5, 23)[number % 3],
            max_tokens=70,
            structured_outputs=_FORMS[number // 3],
            temperature=1.0,
            top_k=3,
            logit_bias=_no_chance(tags),
            seed=number,
            n=1 + number % 2,
        )
        for number in range(9)
    ]

    def run(**settings: Any) -> list[list[list[int]]]:
        with _open(tmp_path, tags, **settings) as llm:
            outputs = llm.chat(prompts, wishes)
            assert {output.error for output in outputs} == {None}
            for output, wish in zip(outputs, wishes, strict=True):
                budget = wish.thinking_token_budget
                assert budget is not None
                for answer in output.outputs:  # a character may have to be completed
                    assert _count_thoughts(answer.token_ids, llm) <= budget + 3
            assert llm.engine.pool.num_free == llm.engine.pool.num_blocks
            return [[list(answer.token_ids) for answer in output.outputs] for output in outputs]

    plain = run(max_num_seqs=1)
    assert run() == plain
    assert run(prompt_lookup_num_tokens=20) == plain
    assert run(prompt_lookup_num_tokens=6, max_num_batched_tokens=11, block_size=4) == plain


def test_log_probabilities_of_a_forced_token_are_the_networks(tmp_path: Path) -> None:
    with _open(tmp_path, ["<think>", _CLOSE]) as llm:
        params = SamplingParams(thinking_token_budget=2, max_tokens=5, logprobs=1)
        output = llm.chat(_ask("think"), params)
        forced = llm.tokenizer.vocabulary.special_tokens.ids[_CLOSE]
    assert output.token_ids[2] == forced
    assert output.logprobs is not None
    assert output.logprobs[2][forced].rank > 1


def test_a_text_that_has_begun_thoughts_is_limited_too(tmp_path: Path) -> None:
    with _open(tmp_path, [], apply_chat_template=False) as llm:
        params = SamplingParams(thinking_token_budget=4, max_tokens=30)
        begun, none = llm.generate(["x<think>I see", "x"], params)
    assert _CLOSE in begun.text
    assert _CLOSE not in none.text


def test_what_cannot_be_limited_is_refused(tmp_path: Path) -> None:
    with _open(tmp_path, [], reasoning_parser="none") as llm:
        output = llm.chat(_ask("think"), SamplingParams(thinking_token_budget=4))
    assert "not known to have any" in str(output.error)
    with _open(tmp_path, [], apply_chat_template=False) as llm:
        form = {"choice": ["a"]}
        params = SamplingParams(thinking_token_budget=4, structured_outputs=form)
        (output,) = llm.generate(["x"], params)
        assert "has no thoughts" in str(output.error)
        (output,) = llm.generate([[10_000]], SamplingParams(thinking_token_budget=4))
        assert "outside the vocabulary" in str(output.error)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="thinking_token_budget"):
            SamplingParams(thinking_token_budget=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="it is called thinking_token_budget here"):
        SamplingParams(thinking_budget=3)  # type: ignore[call-arg]
