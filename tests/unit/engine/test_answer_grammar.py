"""What stands around the form of an answer, with the family's real vocabularies.

Tokens are drawn at random from the masks, then read as the engine reads an answer.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llguidance")

from mindformers_glm.engine.answer_grammar import start_of_text, write_answer_grammar
from mindformers_glm.engine.constraints import AnswerGrammar, ConstraintCompiler
from mindformers_glm.engine.reply_reader import ReplyParsers
from mindformers_glm.engine.structured_outputs import StructuredOutputsParams
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer
from mindformers_glm.tokenizer.replies import ParsedReply, ReplyParser

_MESSAGES = [{"role": "user", "content": "x"}]
_TOOL = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 4}, "ok": {"type": "boolean"}},
        "required": ["city", "ok"],
    },
}
_NUM_ANSWERS = 12
_FOLDERS = ["chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat"]


@pytest.fixture(scope="module", params=_FOLDERS)
def tokenizer(request: pytest.FixtureRequest, shared_fixtures: Path) -> GlmTokenizer:
    return load_tokenizer(shared_fixtures / "tokenizers" / request.param)


@pytest.fixture(scope="module")
def compiler(tokenizer: GlmTokenizer) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer.vocabulary, tokenizer.num_token_ids)


def _draw_answers(
    tokenizer: GlmTokenizer, compiler: ConstraintCompiler, grammar: AnswerGrammar
) -> list[list[int]]:
    """Return finished answers of tokens drawn at random."""
    stop = tokenizer.eos_token_ids[0]
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(_NUM_ANSWERS):
        constraint = compiler.start(grammar, frozenset([stop]))
        token_ids: list[int] = []
        while not constraint.is_complete and len(token_ids) < 300:
            (mask,) = constraint.compute_masks([])
            assert constraint.error is None
            token_id = int(rng.choice(np.flatnonzero(mask.allowed)))
            if mask.is_end or token_id == stop:
                break
            token_ids.append(token_id)
            constraint.accept(token_id)
        answers += [token_ids] if len(token_ids) < 300 else []
    assert len(answers) > _NUM_ANSWERS // 2
    return answers


def _read(tokenizer: GlmTokenizer, parser: ReplyParser, token_ids: list[int]) -> ParsedReply:
    detokenizer = tokenizer.new_detokenizer()
    reply = ParsedReply()
    for token_id in token_ids:
        text, name = detokenizer.feed(token_id), tokenizer.special_token_names.get(token_id)
        reply += parser.feed(text) + (ParsedReply() if name is None else parser.feed_token(name))
    return reply + parser.feed(detokenizer.flush()) + parser.flush(is_complete=True)


@pytest.mark.parametrize(
    "form",
    [
        {"regex": " ?x[ab 北]{3}"},
        {"regex": "[a-z ]{1,9}"},
        {"choice": [" b", "b", "bc"]},
        {"choice": ["北京", "上海"]},
        {"grammar": 'start: " "* "q"'},
    ],
)
def test_a_text_that_goes_on_has_the_form_as_it_is_shown(
    tokenizer: GlmTokenizer, compiler: ConstraintCompiler, form: dict[str, Any]
) -> None:
    """sentencepiece's first blank is not shown, so one of the form's own needs another."""
    params = StructuredOutputsParams(**form)
    start = start_of_text(params, tokenizer.vocabulary.has_dummy_prefix)
    pattern = form.get("regex", "|".join(form.get("choice", [" *q"])))
    for token_ids in _draw_answers(tokenizer, compiler, write_answer_grammar(params, start)):
        assert re.fullmatch(pattern, tokenizer.decode(token_ids)), token_ids


@pytest.mark.parametrize(
    "form", [{"regex": "[a-z北][a-z 北]{1,9}"}, {"json_object": True}, {"choice": ["北京", "b"]}]
)
def test_the_content_of_an_answer_has_the_form(
    tokenizer: GlmTokenizer, compiler: ConstraintCompiler, form: dict[str, Any]
) -> None:
    prompt = tokenizer.encode_chat(_MESSAGES)
    parsers = ReplyParsers("auto", "auto").resolve(tokenizer.reply_parsers)
    start = parsers.start_of_answer(tokenizer, prompt)
    params = StructuredOutputsParams(**form)
    if "json_object" in form:  # any one takes too long
        params = StructuredOutputsParams(json={"type": "object", "maxProperties": 0})
    for token_ids in _draw_answers(tokenizer, compiler, write_answer_grammar(params, start)):
        content = _read(tokenizer, ReplyParser(parsers.tool_calls), token_ids).content
        if "json_object" in form:
            assert json.loads(content) == {}
        else:
            assert re.fullmatch(form.get("regex", "北京|b"), content), repr(content)


@pytest.mark.parametrize("is_parallel", [False, True])
def test_demanded_calls_are_read_as_so_many_calls(
    tokenizer: GlmTokenizer, compiler: ConstraintCompiler, is_parallel: bool
) -> None:
    parsers = ReplyParsers("auto", "auto").resolve(tokenizer.reply_parsers)
    if not parsers.knows_calls:
        pytest.skip("ChatGLM2 was not trained to call tools")
    prompt = tokenizer.encode_chat(_MESSAGES)
    calls = parsers.rules_of_calls(tokenizer, [_TOOL], is_parallel=is_parallel)
    start = parsers.start_of_answer(tokenizer, prompt)
    counts = set()
    for token_ids in _draw_answers(tokenizer, compiler, write_answer_grammar(None, start, calls)):
        reply = _read(tokenizer, ReplyParser(parsers.tool_calls, [_TOOL]), token_ids)
        assert reply.content == ""
        counts.add(len(reply.tool_calls))
        for call in reply.tool_calls:
            assert call.name == "get_weather"
            assert len(json.loads(call.arguments)["city"]) <= 4
            assert json.loads(call.arguments)["ok"] in (True, False)
    assert min(counts) == 1
    assert (max(counts) > 1) == is_parallel
