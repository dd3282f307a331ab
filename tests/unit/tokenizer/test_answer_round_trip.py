"""An answer written as history, tokenized, detokenized token by token and parsed is the same."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer
from mindformers_glm.tokenizer.chat import CHAT_FORMATS, write_chat
from mindformers_glm.tokenizer.replies import ParsedReply, ReplyParser, ToolCall

TOOLS = [{"name": "get_weather"}, {"name": "查询"}]
_TEXTS = ["晴天", "Hello, world!", "👍 👩‍👩‍👧", "a\n\nb", "1 + 1", "{", "```python", "é", "“好”"]
_KEYS = ["city", "城市", "days"]
_VALUES: list[Any] = ["北京", 'a\n"b"\\', 1, -2.5, True, None, ["x", {"y": 1}], {}, "👍"]


def _random_answer(rng: random.Random) -> ParsedReply:
    content = " ".join(rng.choices(_TEXTS, k=rng.randint(0, 3)))
    calls = []
    for _ in range(rng.randint(0 if content else 1, 2)):
        arguments = {key: rng.choice(_VALUES) for key in rng.sample(_KEYS, rng.randint(0, 3))}
        text = json.dumps(arguments, ensure_ascii=False)
        calls.append(ToolCall(rng.choice(["get_weather", "查询"]), text))
    return ParsedReply(content, tool_calls=tuple(calls))


def _answer_ids(tokenizer: GlmTokenizer, format_name: str, answer: ParsedReply) -> list[int]:
    """The tokens from behind the prompt up to where the next answer would begin."""
    user = {"role": "user", "content": "x"}
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or None}
    message["tool_calls"] = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.tool_calls
    ]
    before = tokenizer.encode_segments(write_chat(format_name, [user]))
    return tokenizer.encode_segments(write_chat(format_name, [user, message]))[len(before) : -1]


def _read(tokenizer: GlmTokenizer, format_name: str, ids: list[int]) -> ParsedReply:
    parser = ReplyParser(CHAT_FORMATS[format_name].tool_call_parser, TOOLS)
    detokenizer, reply = tokenizer.new_detokenizer(), ParsedReply()
    for token_id in ids:
        if token_id in tokenizer.special_token_ids:
            reply += parser.start_turn()
        reply += parser.feed(detokenizer.feed(token_id))
    return reply + parser.feed(detokenizer.flush()) + parser.flush()


@pytest.mark.parametrize(
    ("format_name", "folder"),
    [("chatglm3", "chatglm3-6b"), ("glm4_chat", "glm-4-9b-chat"), ("glm4_0414", "glm-4-hf")],
)
def test_answers_come_back_through_their_tokens(
    shared_fixtures: Path, format_name: str, folder: str
) -> None:
    tokenizer = load_tokenizer(shared_fixtures / "tokenizers" / folder)
    rng = random.Random(0)
    for _ in range(200):
        answer = _random_answer(rng)
        ids = _answer_ids(tokenizer, format_name, answer)
        assert _read(tokenizer, format_name, ids) == answer
