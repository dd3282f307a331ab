"""Responses, Messages and TGI: their forms, streamed as whole, and their errors."""

import json
from typing import Any

import pytest

from tests.unit.serving.server.conftest import StartServer
from tests.unit.serving.server.served_model import ServedModel, read_events

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
ANSWER = '想\n</think>\n好的\nget_weather\n{"city": "北京"}\nget_weather\n{"city": "Rome"}'


@pytest.fixture(scope="module")
def thinker(start_server: StartServer) -> ServedModel:
    """Thinks, speaks, and calls a tool twice."""
    server = start_server(reasoning_parser="glm_z1")
    server.script(HELLO, ANSWER, tools=TOOLS, enable_thinking=True)
    return server


def _stream(server: ServedModel, path: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
    status, _, content = server.request("POST", path, body | {"stream": True})
    assert status == 200, content
    return list(read_events(content))


def _without_ids(items: list[Any]) -> list[Any]:
    return [{key: v for key, v in item.items() if key not in ("id", "call_id")} for item in items]


_RESPONSE: dict[str, Any] = {
    "input": "hello",
    "tools": [{"type": "function", "name": "get_weather", "parameters": {}}],
    "chat_template_kwargs": {"enable_thinking": True},
}


def test_a_response_has_thoughts_text_and_calls(thinker: ServedModel) -> None:
    whole = thinker.post("/v1/responses", **_RESPONSE)
    assert [item["type"] for item in whole["output"]] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    assert whole["output"][0]["content"][0]["text"] == "想"
    assert whole["output"][1]["content"][0]["text"] == "好的\n"
    assert json.loads(whole["output"][3]["arguments"]) == {"city": "Rome"}
    events = _stream(thinker, "/v1/responses", _RESPONSE)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(name == data["type"] for name, data in events)
    last = events[-1][1]["response"]
    assert _without_ids(last["output"]) == _without_ids(whole["output"])
    done = [data["item"] for name, data in events if name == "response.output_item.done"]
    assert done == last["output"]
    text = [data["delta"] for name, data in events if name == "response.output_text.delta"]
    assert "".join(text) == "好的\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", []),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image"}]}]),
        ("previous_response_id", "resp_1"),
        ("background", True),
        ("tools", [{"type": "web_search"}]),
        ("text", {"format": {"type": "json_schema", "name": "x"}}),
        ("max_output_tokens", 0),
        ("truncation", "auto"),
    ],
)
def test_a_response_that_cannot_be_is_refused(server: ServedModel, field: str, value: Any) -> None:
    status, message = server.refusal("/v1/responses", **({"input": "hello"} | {field: value}))
    assert (status, bool(message)) == (400, True)


_MESSAGE: dict[str, Any] = {
    "messages": HELLO,
    "max_tokens": 1000,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tools": [{"name": "get_weather", "input_schema": {}}],
}


def test_a_message_has_thoughts_text_and_calls(thinker: ServedModel) -> None:
    whole = thinker.post("/v1/messages", **_MESSAGE)
    thoughts, text, first, second = whole["content"]
    assert (thoughts["thinking"], text["text"]) == ("想", "好的\n")
    assert (first["input"], second["input"]) == ({"city": "北京"}, {"city": "Rome"})
    assert whole["stop_reason"] == "tool_use"
    events = _stream(thinker, "/v1/messages", _MESSAGE)
    assert [events[0][0], events[-1][0]] == ["message_start", "message_stop"]
    blocks: list[Any] = []
    for name, data in events:
        if name == "content_block_start":
            assert data["index"] == len(blocks)
            blocks.append("")
        elif name == "content_block_delta":
            blocks[-1] += next(v for key, v in data["delta"].items() if key != "type")
    assert blocks == ["想", "好的\n", '{"city": "北京"}', '{"city": "Rome"}']
    delta = next(data for name, data in events if name == "message_delta")
    assert delta["delta"]["stop_reason"] == "tool_use"
    assert delta["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", None),
        ("messages", []),
        ("messages", [{"role": "user", "content": [{"type": "image"}]}]),
        ("tools", [{"type": "bash_20250124", "name": "bash"}]),
        ("tool_choice", {"type": "all"}),
        ("tool_choice", {"type": []}),
        ("tool_choice", {"type": "auto", "disable_parallel_tool_use": "no"}),
        ("temprature", 1),
    ],
)
def test_a_message_that_cannot_be_is_refused_in_anthropics_form(
    server: ServedModel, field: str, value: Any
) -> None:
    body = _MESSAGE | {"thinking": None} | {field: value}
    status, _, content = server.request("POST", "/v1/messages", body)
    error = json.loads(content)
    assert (status, error["type"]) == (400, "error")
    assert error["error"]["type"] == "invalid_request_error"


def test_a_call_that_is_cut_off_is_told_by_all(server: ServedModel) -> None:
    text = 'get_weather\n{"text": "' + "long " * 100 + '"}'
    server.script(HELLO, text, tools=TOOLS)
    asked = _MESSAGE | {"thinking": None, "max_tokens": 300}
    whole = server.post("/v1/messages", **asked)
    assert whole["stop_reason"] == "max_tokens"
    events = _stream(server, "/v1/messages", asked)
    pieces = [d["delta"]["partial_json"] for n, d in events if n == "content_block_delta"]
    assert whole["content"][0]["input"] == {"input": "".join(pieces)}
    assert len(pieces) > 3
    response = server.post(
        "/v1/responses", **_RESPONSE | {"chat_template_kwargs": {}, "max_output_tokens": 300}
    )
    assert response["output"][0]["arguments"] == "".join(pieces)
    assert response["output"][0]["status"] == "incomplete"


def test_tgi_tells_tokens_and_at_last_the_text(server: ServedModel) -> None:
    server.runner.scripts[tuple(server.llm.tokenizer.encode("say:"))] = server.llm.tokenizer.encode(
        "a né"
    )
    body = {"inputs": "say:", "parameters": {"details": True, "max_new_tokens": 20}}
    whole = server.post("/generate", **body)
    assert whole["generated_text"] == "a né"
    assert whole["details"]["finish_reason"] == "eos_token"
    assert whole["details"]["generated_tokens"] == len(whole["details"]["tokens"]) == 6
    events = [data for _, data in _stream(server, "/generate_stream", body)]
    assert [event["index"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert "".join(event["token"]["text"] for event in events) == "a né"
    assert [event["generated_text"] for event in events] == [None] * 5 + ["a né"]
    full = {"inputs": "say:", "parameters": {"return_full_text": True, "stop": ["n"]}}
    assert server.post("/generate", **full)["generated_text"] == "say:a "
    status, _, content = server.request("POST", "/generate", {"inputs": 1})
    assert status == 400
    assert json.loads(content)["error_type"] == "validation"
    status, _, content = server.request(
        "POST", "/generate", {"inputs": "x", "parameters": {"watermark": True}}
    )
    assert (status, "watermark" in json.loads(content)["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/responses", {"input": "hello"}, "error"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 3000}, "error"),
        ("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 3000}}, ""),
    ],
)
def test_a_stream_that_breaks_ends_with_the_error_of_its_api(
    start_server: StartServer, path: str, body: dict[str, Any], name: str
) -> None:
    server = start_server(timeout_s=0.05)
    server.runner.pause.clear()
    status, _, content = server.request("POST", path, body | {"stream": True})
    server.runner.pause.set()
    if status == 504:
        assert b"0.05 s" in content
        return
    found, data = list(read_events(content))[-1]
    assert (found, "0.05 s" in json.dumps(data)) == (name, True)


@pytest.mark.parametrize("name", ["thinking_token_budget", "thinking_budget"])
def test_thoughts_end_with_their_budget(thinker: ServedModel, name: str) -> None:
    asked = {"enable_thinking": True, "messages": [{"role": "user", "content": "think long"}]}
    thinker.script(asked["messages"], "one two three</think>four", enable_thinking=True)
    whole = thinker.post("/v1/chat/completions", **asked, **{name: 7}, max_tokens=40)
    message = whole["choices"][0]["message"]
    assert message["reasoning_content"] == "one two"
    events = thinker.events("/v1/chat/completions", **asked, **{name: 7}, max_tokens=40)
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == "one two"
    body = {"messages": asked["messages"], "max_tokens": 40}
    thinking = {"type": "enabled", "budget_tokens": 7}
    whole = thinker.post("/v1/messages", **body, thinking=thinking)
    assert whole["content"][0]["thinking"] == "one two"


def test_a_budget_of_thoughts_is_refused_where_it_is_none(
    thinker: ServedModel, start_server: StartServer
) -> None:
    body = {"messages": HELLO, "thinking_token_budget": -1}
    status, message = thinker.refusal("/v1/chat/completions", **body)
    assert (status, "at least 0" in message) == (400, True)
    plain = start_server(reasoning_parser="none")
    body = {"messages": HELLO, "thinking_token_budget": 3}
    status, message = plain.refusal("/v1/chat/completions", **body)
    assert (status, "not known to have any" in message) == (400, True)


def test_special_tokens_that_are_written_are_read_with_and_without_those_put_before(
    thinker: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = thinker.llm.tokenizer.encode
    text = "a<|assistant|>b"
    for prefix in ([], [3, 4]):  # glm-4-9b-chat's tokenizer puts [gMASK] and <sop> before a text
        monkeypatch.setattr(
            thinker.llm.tokenizer, "encode", lambda text, head=prefix: head + encode(text)
        )
        whole = thinker.post("/tokenize", prompt=text)["tokens"]
        bare = thinker.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]
        assert whole == prefix + encode(text)
        assert bare == encode(text)
        assert len(bare) == 3
