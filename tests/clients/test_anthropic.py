"""Anthropic's client against a served glm4-mini."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import API_KEY
from tests.conftest import MINI

anthropic = pytest.importorskip("anthropic")

BEIJING = {
    "model": "glm4-mini",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "请介绍一下北京"}],
}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key=API_KEY, max_retries=0) as client:
        yield client


def test_a_message_whole_and_streamed(client: Any) -> None:
    whole = client.messages.create(**BEIJING)
    assert "首都" in whole.content[0].text
    assert whole.stop_reason == "end_turn"
    with client.messages.stream(**BEIJING) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    cut = client.messages.create(**BEIJING | {"max_tokens": 2})
    assert cut.stop_reason == "max_tokens"
    stopped = client.messages.create(**BEIJING, stop_sequences=["首都"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "首都")


def test_a_tool_is_used_and_its_result_read(client: Any) -> None:
    lines = (MINI / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    question = next(q for q in map(json.loads, lines) if q["category"] == "tool_call")
    functions = [tool["function"] for tool in question["tools"]]
    tools = [
        {"name": f["name"], "description": f["description"], "input_schema": f["parameters"]}
        for f in functions
    ]
    user = next(m for m in question["messages"] if m["role"] == "user")
    asked = BEIJING | {"messages": [user], "tools": tools}
    whole = client.messages.create(**asked)
    assert whole.stop_reason == "tool_use"
    (use,) = whole.content
    with client.messages.stream(**asked) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.name, streamed.input) == (use.name, use.input)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": '{"ok": 1}'}
    messages = [
        user,
        {"role": "assistant", "content": whole.to_dict()["content"]},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(**asked | {"messages": messages}).role == "assistant"


def test_tokens_are_counted_and_errors_are_the_clients_own(client: Any) -> None:
    asked = {"model": "glm4-mini", "messages": BEIJING["messages"], "system": "你好"}
    assert client.messages.count_tokens(**asked).input_tokens > 3
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**BEIJING, extra_body={"temperature": -1})
