"""Each case of the reply parsers through HTTP: streamed, whole, and as the parser reads it.

And generated answers, whose meaning is known (scripts/fuzz/random_answers.py). A token is a byte.
"""

import json
import random
from itertools import groupby
from typing import Any

import pytest
from random_answers import KINDS, Kind, make_answer
from random_answers import TOOLS as RANDOM_TOOLS

from mindformers_glm.tokenizer.replies import ParsedReply, ReplyParser
from tests.unit.serving.server.conftest import StartServer
from tests.unit.serving.server.served_model import (
    ASSISTANT,
    ServedModel,
    join_chat,
    plain_message,
)
from tests.unit.tokenizer.test_reply_parser import CASES, TOOLS, TURN, Parsers

_MAX_CHARACTERS = 400
_NUM_GENERATED = 4  # of each kind
_BY_PARSERS = {
    parsers: [answer for _, answer, _ in group if len(answer) < _MAX_CHARACTERS]
    for parsers, group in groupby(sorted(CASES, key=lambda case: case[0]), lambda case: case[0])
}


def _expected(parsers: Parsers, answer: str) -> ParsedReply:
    calls, reasoning, starts_inside = parsers
    parser = ReplyParser(calls, TOOLS, reasoning, starts_in_reasoning=starts_inside)
    first, *others = answer.split(TURN)
    reply = parser.feed(first)
    for text in others:
        reply += parser.start_turn() + parser.feed(text)
    return reply + parser.flush(is_complete=True)


def _message(reply: ParsedReply) -> dict[str, Any]:
    return {
        "content": reply.content,
        "reasoning_content": reply.reasoning,
        "tool_calls": [
            {"name": call.name, "arguments": call.arguments} for call in reply.tool_calls
        ],
        "finish_reason": "tool_calls" if reply.tool_calls else "stop",
    }


@pytest.mark.parametrize("parsers", _BY_PARSERS, ids=str)
def test_streamed_and_whole_answers_are_what_the_parser_reads(
    parsers: Parsers, start_server: StartServer
) -> None:
    calls, reasoning, starts_inside = parsers
    server = start_server(tool_call_parser=calls, reasoning_parser=reasoning)
    for number, answer in enumerate(_BY_PARSERS[parsers]):
        messages = [{"role": "user", "content": f"case {number}"}]
        asked = {"tools": TOOLS, **({"enable_thinking": True} if starts_inside else {})}
        server.script(messages, answer.replace(TURN, ASSISTANT), **asked)
        body = {"messages": messages, "max_tokens": 2000, **asked}
        expected = _message(_expected(parsers, answer))
        assert plain_message(_chat(server, body)) == expected, answer
        assert join_chat(server.events("/v1/chat/completions", **body)) == expected, answer
    server.stop()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_generated_answers_are_streamed_and_whole_what_was_meant(
    kind: Kind, start_server: StartServer
) -> None:
    server = start_server(tool_call_parser=kind.tool_calls, reasoning_parser=kind.reasoning)
    answers = (make_answer(random.Random(f"http {number}"), kind) for number in range(1_000))
    short = (answer for answer in answers if len(answer.text.encode()) < 250)
    for number, answer in zip(range(_NUM_GENERATED), short, strict=False):
        messages = [{"role": "user", "content": f"case {number}"}]
        asked: dict[str, Any] = {"tools": RANDOM_TOOLS} if answer.has_tools else {}
        asked |= {"enable_thinking": True} if kind.starts_inside else {}
        server.script(messages, answer.text.replace(TURN, ASSISTANT), **asked)
        body = {"messages": messages, "max_tokens": 2000, **asked}
        whole = plain_message(_chat(server, body))
        assert join_chat(server.events("/v1/chat/completions", **body)) == whole, answer
        calls = [(call["name"], json.loads(call["arguments"])) for call in whole["tool_calls"]]
        assert calls == answer.calls, answer
        assert whole["reasoning_content"] == answer.reasoning
        assert whole["content"].rstrip() == answer.content.rstrip()
        assert whole["finish_reason"] == ("tool_calls" if calls else "stop")
    server.stop()


def _chat(server: ServedModel, body: dict[str, Any]) -> Any:
    return server.post("/v1/chat/completions", **body)["choices"][0]
