"""Forms of answers and demanded calls through HTTP, streamed and whole, on random logits."""

import json
from typing import Any

import pytest

from tests.unit.serving.server.conftest import StartServer
from tests.unit.serving.server.served_model import ServedModel, join_chat, plain_message

pytest.importorskip("llguidance")

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "no script for this"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", "g")
]


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServedModel:
    """One that does not think: random logits would do nothing else."""
    return start_server(reasoning_parser="none")


def _both(server: ServedModel, **body: Any) -> dict[str, Any]:
    """The answer, which must be the same streamed."""
    body = {"messages": HELLO, "max_tokens": 200, **body}
    message = plain_message(server.post(PATH, **body)["choices"][0])
    assert join_chat(server.events(PATH, **body)) == message
    return message


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        {"guided_json": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_an_answer_has_the_form_of_its_schema(server: ServedModel, asked: dict[str, Any]) -> None:
    found = json.loads(_both(server, **asked)["content"])
    assert found["n"] in (1, 2)
    assert isinstance(found["ok"], bool)


def test_choices_and_expressions_hold(server: ServedModel) -> None:
    assert _both(server, guided_choice=["yes", "no"])["content"] in ("yes", "no")
    assert _both(server, guided_regex="[ab]{3}")["content"].strip("ab") == ""
    body = {"inputs": "x", "parameters": {"grammar": {"type": "regex", "value": "[01]{4}"}}}
    assert server.post("/generate", **body)["generated_text"].strip("01") == ""
    text = server.post("/v1/completions", prompt="x", guided_choice=["p", "q"])["choices"][0]
    assert text["text"] in ("p", "q")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "g"}}])
def test_a_demanded_call_is_made(server: ServedModel, choice: Any) -> None:
    asked = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    message = _both(server, **asked)
    (call,) = message["tool_calls"]
    assert call["name"] in ("f", "g") if choice == "required" else call["name"] == "g"
    assert json.loads(call["arguments"])["n"] in (1, 2)
    tools = [{"name": "f", "input_schema": SCHEMA}]
    whole = server.post(
        "/v1/messages", messages=HELLO, max_tokens=200, tools=tools, tool_choice={"type": "any"}
    )
    assert whole["stop_reason"] in ("tool_use", "max_tokens")


def test_a_response_has_the_form_of_its_text(server: ServedModel) -> None:
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA}
    body = server.post("/v1/responses", input="hello", text={"format": form})
    assert json.loads(body["output"][0]["content"][0]["text"])["n"] in (1, 2)


def test_a_schema_that_cannot_be_followed_is_refused(server: ServedModel) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "http://x.test/y.json"}}}
    status, message = server.refusal(PATH, messages=HELLO, guided_json=schema)
    assert (status, "http://x.test/y.json" in message) == (400, True)
