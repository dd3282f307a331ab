"""Masks of llguidance for the family's vocabularies, judged by Python's own regular expressions."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llguidance")

from mindformers_glm.core.errors import PromptError, UnsupportedError
from mindformers_glm.engine.answer_grammar import write_answer_grammar
from mindformers_glm.engine.constraints import AnswerGrammar, Constraint, ConstraintCompiler
from mindformers_glm.engine.structured_outputs import StructuredOutputsParams
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer
from tests.conftest import MINI, REPO

_TOKENIZERS = ("glm4-mini", "glm-4-hf", "glm-4-9b-chat", "chatglm2-6b", "chatglm3-6b")


@pytest.fixture(scope="module")
def mini() -> GlmTokenizer:
    return load_tokenizer(MINI)


@pytest.fixture(scope="module")
def compiler(mini: GlmTokenizer) -> ConstraintCompiler:
    return ConstraintCompiler(mini.vocabulary, mini.num_token_ids + 5)


def _grammar(**form: Any) -> AnswerGrammar:
    return write_answer_grammar(StructuredOutputsParams(**form))


def _start(compiler: ConstraintCompiler, stop: int = 0, **form: Any) -> Constraint:
    return compiler.start(_grammar(**form), frozenset([stop]))


def test_a_mask_allows_just_what_can_be_completed(
    mini: GlmTokenizer, compiler: ConstraintCompiler
) -> None:
    """Of a finite language, every allowed token leads to a member and every other to none."""
    members = [text.encode() for text in ("abc", "abd", "12", "123", "长江", "长城墙")]
    stop = mini.eos_token_ids[0]
    texts = mini.vocabulary.list_token_bytes(mini.num_token_ids + 5)
    for wanted in ("长城墙", "123", "abd"):
        constraint = _start(compiler, stop, choice=[member.decode() for member in members])
        written = b""
        for token_id in mini.vocabulary.encode_within(wanted):
            (mask,) = constraint.compute_masks([])
            rests = {text[len(written) :] for text in members if text.startswith(written)}
            for other, text in enumerate(texts):
                expected = bool(text) and any(rest.startswith(text) for rest in rests)
                expected |= other == stop and b"" in rests
                # Where only one text can follow, only its own tokenization may.
                if mask.allowed[other] or len(rests) > 1:
                    assert mask.allowed[other] == expected, (written, text)
            assert mask.allowed[token_id]
            constraint.accept(token_id)
            written += texts[token_id]
        assert written == wanted.encode()
        assert constraint.is_complete


@pytest.mark.parametrize("name", _TOKENIZERS)
def test_texts_as_each_tokenizer_writes_them_are_allowed(name: str, request: Any) -> None:
    folder = MINI
    if name != "glm4-mini":
        folder = request.getfixturevalue("shared_fixtures") / "tokenizers" / name
    tokenizer = load_tokenizer(folder)
    compiler = ConstraintCompiler(tokenizer.vocabulary, tokenizer.num_token_ids + 64)
    value = {"名字": '张三 «🦀» "q"', "n": -12.5e3, "l": [True, None, {"a b": "x\ty"}]}
    for text in (json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2)):
        constraint = _start(compiler, json_object=True)
        if "\\u" in text:  # printable characters are not written as escapes
            continue
        for token_id in tokenizer.vocabulary.encode_within(text):
            (mask,) = constraint.compute_masks([])
            assert mask.allowed[token_id], (text, tokenizer.decode_token(token_id))
            constraint.accept(token_id)
            assert constraint.error is None
        assert constraint.is_complete


@pytest.mark.parametrize("name", _TOKENIZERS)
@pytest.mark.parametrize(
    "regex", ["[a-z]{3}[0-9]{2}", "(北京|上海|重庆) ?[^\\n]{4}", "a/b\\\\\\.\n?x+y"]
)
def test_random_tokens_of_the_masks_match_the_expression(
    name: str, regex: str, request: Any
) -> None:
    folder = MINI
    if name != "glm4-mini":
        folder = request.getfixturevalue("shared_fixtures") / "tokenizers" / name
    tokenizer = load_tokenizer(folder)
    compiler = ConstraintCompiler(tokenizer.vocabulary, tokenizer.num_token_ids)
    stop = tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else 0
    rng = np.random.default_rng(0)
    num_complete = 0
    for _ in range(15):
        constraint = _start(compiler, stop, regex=regex)
        token_bytes = b""
        for _ in range(60):
            (mask,) = constraint.compute_masks([])
            token_id = int(rng.choice(np.flatnonzero(mask.allowed)))
            if token_id == stop:
                break
            token_bytes += tokenizer.vocabulary.bytes_of(token_id)
            constraint.accept(token_id)
            if constraint.is_complete:
                break
        else:
            continue
        num_complete += 1
        assert re.fullmatch(regex, token_bytes.decode()), token_bytes
    assert num_complete > 5


def test_masks_behind_a_draft_are_those_of_its_tokens_and_leave_no_trace(
    mini: GlmTokenizer, compiler: ConstraintCompiler
) -> None:
    draft = mini.vocabulary.encode_within("[12, 3]")
    constraint = _start(compiler, json={"type": "array", "items": {"type": "integer"}})
    together = constraint.compute_masks(draft)
    assert len(together) == len(draft) + 1
    assert together[-1].is_end
    for mask, token_id in zip(together, draft, strict=False):
        (alone,) = constraint.compute_masks([])
        np.testing.assert_array_equal(mask.allowed, alone.allowed)
        assert not constraint.is_complete
        constraint.accept(token_id)
    assert constraint.is_complete


def test_masks_end_behind_a_guess_that_is_not_allowed(
    mini: GlmTokenizer, compiler: ConstraintCompiler
) -> None:
    draft = mini.vocabulary.encode_within("12x4")
    constraint = _start(compiler, regex="[0-9]+")
    num_digits = constraint.count_allowed(draft)
    assert 0 < num_digits < len(draft)
    assert len(constraint.compute_masks(draft)) == num_digits + 1
    assert constraint.error is None


def test_a_stop_token_is_allowed_just_where_the_answer_is_complete(
    mini: GlmTokenizer, compiler: ConstraintCompiler
) -> None:
    (digit,) = mini.vocabulary.encode_within("7")
    constraint = _start(compiler, stop=digit, regex="[0-9]{2,3}")
    for is_complete in (False, False, True):
        (mask,) = constraint.compute_masks([])
        assert mask.allowed[digit] == is_complete
        other = mini.vocabulary.encode_within("8")[0]
        assert mask.allowed[other]
        constraint.accept(other)
    assert constraint.is_complete


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            {"json": {"properties": {"a": {"items": {"uniqueItems": True, "type": "array"}}}}},
            "The JSON schema: uniqueItems at #/properties/a/items is not supported",
        ),
        (
            {"json": {"properties": {"a": {"type": "string", "format": "regex"}}}},
            "The JSON schema: format 'regex' at #/properties/a is not supported",
        ),
        ({"json": {"items": {"type": "strin"}}}, "type 'strin' at #/items is not supported"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "is not present in a registry"),
        ({"json": {"$ref": "#"}}, "The JSON schema: no answer can have this form"),
        ({"json": {"enum": []}}, "The JSON schema: Unsatisfiable schema"),
        (
            {"json": {"items": {"minProperties": 3}}},
            "The JSON schema: minProperties 3 at #/items cannot be kept",
        ),
        ({"json": {"x-guidance": {"lenient": True}}}, "x-guidance at # is no keyword"),
        (
            {"regex": "(?=a)b"},
            "look-around, including look-ahead and look-behind, is not supported",
        ),
        ({"regex": "(a)\\1"}, "regex: .*backreferences are not supported"),
        ({"regex": "a\\"}, "regex: "),
        ({"grammar": "start: foo"}, 'grammar: .*unknown name: "foo"'),
        ({"grammar": "root ::= ("}, "grammar: it cannot be read as GBNF"),
    ],
)
def test_what_cannot_be_kept_is_one_sentence_that_names_it(
    compiler: ConstraintCompiler, form: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        compiler.check(_grammar(**form))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_pattern_with_too_many_groups_is_refused(compiler: ConstraintCompiler) -> None:
    schema = {"type": "string", "pattern": "(a)" * 500}
    with pytest.raises(ValueError, match="pattern at # has 500 groups"):
        compiler.check(_grammar(json=schema))


def test_what_takes_too_many_steps_is_an_error_of_this_answer(
    mini: GlmTokenizer, compiler: ConstraintCompiler
) -> None:
    constraint = _start(compiler, regex=r"[ab]*a([ab]|[ab]c*d){3000}(x|y{2,3000}){3000}")
    rng = np.random.default_rng(0)
    letters = mini.vocabulary.encode_within("a") + mini.vocabulary.encode_within("b")
    for _ in range(300):
        constraint.compute_masks([])
        if constraint.error is not None:
            break
        constraint.accept(int(rng.choice(letters)))
    # Either the limits of llguidance hold, or it is fast enough; nothing hangs.
    assert constraint.error is None or "\n" not in constraint.error


_DEEP = """
from mindformers_glm.engine.answer_grammar import write_answer_grammar
from mindformers_glm.engine.constraints import ConstraintCompiler
from mindformers_glm.engine.structured_outputs import StructuredOutputsParams
from mindformers_glm.tokenizer import load_tokenizer
tokenizer = load_tokenizer("mindformers_glm/assets/glm4-mini")
defs = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(2_700)}
schema = {"$ref": "#/$defs/d0", "$defs": defs | {"d2700": {"type": "boolean"}}}
compiler = ConstraintCompiler(tokenizer.vocabulary, tokenizer.num_token_ids)
grammar = write_answer_grammar(StructuredOutputsParams(json=schema))
print(compiler.start(grammar, frozenset()).compute_masks([])[0].allowed.sum())
"""


def test_a_long_chain_of_references_does_not_end_the_process() -> None:
    """On a thread's usual stack llguidance 1.9.1 ends it by a signal from 1,500 on."""
    done = subprocess.run(
        [sys.executable, "-c", _DEEP], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_equal_grammars_are_compiled_once_whatever_thread_asks(
    compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_compiled = 0
    compile_grammar = compiler._compile

    def count(grammar: AnswerGrammar) -> Any:
        nonlocal num_compiled
        num_compiled += 1
        return compile_grammar(grammar)

    monkeypatch.setattr(compiler, "_compile", count)
    grammar = _grammar(regex="once[0-9]")
    threads = [threading.Thread(target=compiler.check, args=(grammar,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_compiled == 1


def test_answers_of_one_grammar_do_not_move_each_other(
    mini: GlmTokenizer, compiler: ConstraintCompiler
) -> None:
    one, other = (_start(compiler, regex="ab|cd") for _ in range(2))
    before = other.compute_masks([])[0].allowed.copy()
    one.accept(mini.vocabulary.encode_within("a")[0])
    np.testing.assert_array_equal(other.compute_masks([])[0].allowed, before)


def test_a_long_text_without_choice_takes_no_long_time(
    mini: GlmTokenizer, compiler: ConstraintCompiler
) -> None:
    text = "长江 " * 5_000
    constraint = _start(compiler, json={"const": text})
    for token_id in mini.vocabulary.encode_within(json.dumps(text, ensure_ascii=False)[:40])[:5]:
        (mask,) = constraint.compute_masks([])
        assert mask.allowed.sum() == 1
        assert mask.allowed[token_id]
        constraint.accept(token_id)


def test_without_llguidance_one_sentence_says_what_to_install(
    mini: GlmTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    compiler = ConstraintCompiler(mini.vocabulary, mini.num_token_ids)
    with pytest.raises(UnsupportedError, match=re.escape("pip install 'mindformers_glm[serve]'")):
        compiler.check(_grammar(regex="a"))
    with pytest.raises(UnsupportedError, match=re.escape("pip install 'mindformers_glm[serve]'")):
        _grammar(grammar='root ::= "a"')


def test_tokens_with_the_same_bytes_are_one_choice(shared_fixtures: Path) -> None:
    """sentencepiece has bytes beside its pieces: a model only writes those without a piece."""
    vocabulary = load_tokenizer(shared_fixtures / "tokenizers" / "chatglm3-6b").vocabulary
    listed = vocabulary.list_token_bytes(vocabulary.num_token_ids)
    filled = [token_bytes for token_bytes in listed if token_bytes]
    assert len(filled) == len({*filled})
    for text in ("{", "a", "\n", "0"):
        token_id = vocabulary.encode_within(text)[0]
        assert listed[token_id] == text.encode()
