"""Nothing that would change an answer is left out in silence, at whatever depth it stands."""

import json
from typing import Any

import pytest

from tests.unit.serving.server.conftest import StartServer
from tests.unit.serving.server.served_model import ServedModel

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"messages": HELLO, "max_tokens": 3}
COUNT = "/v1/messages/count_tokens"


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        (
            "/v1/chat/completions",
            CHAT | {"stream": True, "stream_options": {"include_usge": True}},
            "stream_options.include_usge: did you mean include_usage",
        ),
        ("/v1/chat/completions", CHAT | {"max_output_tokens": 5}, "max_output_tokens is no field"),
        ("/v1/messages", CHAT | {"thinking": {"type": "on"}}, "thinking.type must be enabled"),
        ("/v1/messages", CHAT | {"thinking": {"budget_tokens": 5}}, "thinking.type must be"),
        (
            "/v1/messages",
            CHAT | {"tool_choice": {"type": "auto", "disable_paralel_tool_use": True}},
            "did you mean disable_parallel_tool_use",
        ),
        ("/v1/messages", CHAT | {"guided_choice": ["a"]}, "guided_choice is no field"),
        ("/v1/responses", {"input": "hello", "text": {"verbosity": "low"}}, "text.verbosity='low'"),
        ("/v1/responses", {"input": "hello", "max_tokens": 3}, "max_tokens is no field"),
        ("/v1/responses", {"input": "a", "response_format": {"type": "text"}}, "use text.format"),
        ("/generate", {"inputs": "x", "temperature": 2}, "temperature is no field of this route"),
        ("/generate", {"inputs": "x", "parameters": {"grammar": {}}}, "parameters.grammar must be"),
        (
            "/generate",
            {"inputs": "x", "parameters": {"grammar": {"type": "json"}}},
            "parameters.grammar must be",
        ),
        ("/tokenize", {"prompt": "x", "messages": HELLO}, "messages is no field"),
        ("/detokenize", {}, "tokens must be a list"),
        (COUNT, {"messages": HELLO, "systm": "x"}, "did you mean system"),
    ],
)
def test_what_would_change_the_answer_is_refused(
    server: ServedModel, path: str, body: dict[str, Any], part: str
) -> None:
    status, _, content = server.request("POST", path, body)
    assert (status, part in content.decode()) == (400, True), content


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        (
            "/v1/chat/completions",
            CHAT | {"stream": True, "stream_options": {"include_obfuscation": False}},
            "stream_options.include_obfuscation",
        ),
        ("/v1/completions", {"prompt": "x", "max_tokens": 1, "tool_choice": "none"}, "tool_choice"),
        (
            "/v1/messages",
            CHAT | {"thinking": {"type": "disabled", "display": "omitted"}, "top_secret": 1},
            "top_secret thinking.display",
        ),
        ("/v1/messages", CHAT | {"thinking": {"type": "adaptive"}}, None),
        ("/generate", {"inputs": "x", "foo": 1, "parameters": {"bar": 1}}, "foo parameters.bar"),
        (COUNT, CHAT | {"temperature": 0.5}, "max_tokens temperature"),
    ],
)
def test_what_cannot_change_it_is_named_in_a_header(
    server: ServedModel, path: str, body: dict[str, Any], names: str | None
) -> None:
    status, headers, content = server.request("POST", path, body)
    assert status == 200, content
    expected = names and f'299 mindformers-glm "ignored fields: {names}"'
    assert headers.get("warning") == expected


def test_a_message_that_ends_with_the_assistants_goes_on_with_it(start_server: StartServer) -> None:
    server = start_server()
    begun = [*HELLO, {"role": "assistant", "content": "one "}]
    prompt = server.llm.tokenizer.encode("<|user|>\nhello<|assistant|>\none ")
    server.runner.scripts[tuple(prompt)] = server.llm.tokenizer.encode("two")
    answer = server.post("/v1/messages", messages=begun, max_tokens=9)
    assert [block["text"] for block in answer["content"]] == ["two"]
    assert server.post(COUNT, messages=begun)["input_tokens"] == len(prompt)
    # The end of a tool's call is not the beginning of a text.
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    called = [*HELLO, {"role": "assistant", "content": [call]}]
    status, _, content = server.request(
        "POST", "/v1/messages", {"messages": called, "max_tokens": 3}
    )
    assert status == 200, json.loads(content)
