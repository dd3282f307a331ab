"""The grammar of a whole answer: what stands before it, thoughts, and the form that was asked for.

A model of the family does not begin with the answer itself: first comes the end of the role's line,
the blank that sentencepiece puts before a text, or thoughts. Reading the reply drops all of that,
so what is left has the form and nothing else.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine.constraints import AnswerGrammar, GrammarPart, import_llguidance
from mindformers_glm.engine.json_schemas import check_schema, with_options
from mindformers_glm.engine.structured_outputs import StructuredOutputsParams
from mindformers_glm.tokenizer.replies import CLOSE_TAG, OPEN_TAG, CallRules

# What may stand between thoughts and answer.
_LINE_ENDS = r"/\n{1,2}/"


@dataclass(frozen=True)
class AnswerStart:
    """What comes before the answer itself, in Lark; empty texts stand for nothing.

    lead: what the answer begins with where there are no thoughts.
    thoughts: how they go on and end where the model has begun them.
    opening: how the model begins them.
    is_thinking: the prompt has begun them.
    """

    lead: str = ""
    thoughts: str = ""
    opening: str = ""
    is_thinking: bool = False


AT_ONCE = AnswerStart()


def start_of_text(form: StructuredOutputsParams | None, has_dummy_prefix: bool) -> AnswerStart:
    """Return the start of an answer to a prompt that is no conversation.

    Args:
        has_dummy_prefix: a blank at the beginning is not shown. Where the form may begin with one
            of its own, both must be written.
    """
    if not has_dummy_prefix:
        return AT_ONCE
    is_sure = form is not None and (
        form.json is not None
        or form.json_object
        or not any(text.startswith(" ") for text in form.choice or (" ",))
    )
    return AnswerStart('" "?' if is_sure else '" "')


def start_with_thoughts(
    lead: str, *, is_thinking: bool, opening_id: int | None, closing_id: int | None
) -> AnswerStart:
    """Return the start of an answer that may have thoughts.

    Args:
        opening_id, closing_id: the tags' tokens; None where a tag is text.
    """
    opening = json.dumps(OPEN_TAG) if opening_id is None else f"<[{opening_id}]>"
    if closing_id is None:
        thoughts = f"thoughts[lazy]: /(.|\\n)*{CLOSE_TAG.replace('/', chr(92) + '/')}/\n"
    else:
        thoughts = f"thoughts: THOUGHTS <[{closing_id}]>\nTHOUGHTS: /(.|\\n)*/\n"
    return AnswerStart(lead, thoughts, f'"\\n"? {opening}', is_thinking)


def write_answer_grammar(
    form: StructuredOutputsParams | None,
    start: AnswerStart = AT_ONCE,
    calls: CallRules | None = None,
) -> AnswerGrammar:
    """Return the grammar of an answer that has the form, or is calls of tools.

    Args:
        form: None: it must be calls.
        calls: None: it must have the form; both given: either.
    Raises:
        PromptError: the form or a tool's parameters have something that cannot be kept.
        UnsupportedError: a grammar is given and llguidance is not installed.
    """
    parts: list[GrammarPart] = []
    named: list[dict[str, Any]] = []
    bodies: list[str] = []
    if form is not None:
        part, grammar = _write_form(form)
        parts.append(part)
        named.append({"name": "answer", **grammar})
        bodies.append("@answer")
    if calls is not None:
        bodies.append("calls")
        for name, (label, schema) in calls.schemas.items():
            check_schema(schema, label)
            grammar = {"json_schema": with_options(schema, disable_any_whitespace=False)}
            parts.append(GrammarPart(label, _list_grammars([grammar]), schema))
            named.append({"name": name, **grammar})
    lark = _write_start(start, bodies) + ("" if calls is None else calls.rules)
    return AnswerGrammar(_list_grammars([{"lark_grammar": lark}, *named]), tuple(parts))


def _write_start(start: AnswerStart, bodies: list[str]) -> str:
    """The role's line ends before an answer; the name of a tool stands on it."""
    at_once = [f"{start.lead} {body}" if body == "@answer" else body for body in bodies]
    if not start.thoughts:
        return f"start: {' | '.join(at_once)}\n"
    behind = f"thoughts LINE_ENDS? ({' | '.join(bodies)})"
    ways = [behind] if start.is_thinking else [f"{start.opening} {behind}", *at_once]
    return f"start: {' | '.join(ways)}\n{start.thoughts}LINE_ENDS: {_LINE_ENDS}\n"


def _write_form(form: StructuredOutputsParams) -> tuple[GrammarPart, dict[str, Any]]:
    if form.json is not None or form.json_object:
        schema = json.loads(form.json) if isinstance(form.json, str) else {"type": "object"}
        check_schema(schema, "The JSON schema")
        written = with_options(schema, disable_any_whitespace=form.disable_any_whitespace)
        grammar: dict[str, Any] = {"json_schema": written}
        return GrammarPart("The JSON schema", _list_grammars([grammar]), schema), grammar
    if form.choice is not None:
        lark = f"start: {' | '.join(map(json.dumps, form.choice))}"
    elif form.regex is not None:
        lark = f"start: /{_write_regex(form.regex)}/"
    else:
        assert form.grammar is not None, "one of the forms is given"
        lark = _read_grammar(form.grammar)
    name = next(n for n in ("choice", "regex", "grammar") if getattr(form, n) is not None)
    grammar = {"lark_grammar": lark}
    return GrammarPart(name, _list_grammars([grammar])), grammar


def _write_regex(regex: str) -> str:
    """Return a regular expression as it stands between Lark's slashes, on one line."""
    special = {"/": r"\/", "\n": r"\n", "\r": r"\r"}
    return re.sub(r"\\?[/\n\r]|\\[^/\n\r]", lambda m: special.get(m[0][-1], m[0]), regex)


def _read_grammar(text: str) -> str:
    """Return a grammar as Lark; it is GBNF where its rules are written with ::=."""
    if not re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE):
        return text
    import_llguidance()
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except Exception as problem:  # it has no type of its own for all that can be wrong
        raise PromptError(f"grammar: it cannot be read as GBNF ({problem}).") from None


def _list_grammars(grammars: list[dict[str, Any]]) -> str:
    return json.dumps({"grammars": grammars}, ensure_ascii=False)
