"""openai-python against a served glm4-mini."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.conftest import API_KEY
from tests.conftest import MINI

openai = pytest.importorskip("openai")

BEIJING = [{"role": "user", "content": "请介绍一下北京"}]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def question() -> dict[str, Any]:
    """One that glm4-mini was trained to answer by a call, with its tools."""
    lines = (MINI / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return next(q for q in map(json.loads, lines) if q["category"] == "tool_call")


def test_a_chat_whole_and_streamed(client: Any) -> None:
    whole = client.chat.completions.create(model="glm4-mini", messages=BEIJING, temperature=0)
    assert "首都" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        model="gpt-4o",
        messages=BEIJING,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens == (
        whole.usage.total_tokens
    )


def test_the_stream_helper_puts_an_answer_together(client: Any) -> None:
    with client.chat.completions.stream(
        model="glm4-mini", messages=BEIJING, temperature=0
    ) as stream:
        final = stream.get_final_completion()
    assert "首都" in final.choices[0].message.content


def test_a_tool_call_whole_and_streamed(client: Any, question: dict[str, Any]) -> None:
    asked = {
        "model": "glm4-mini",
        "messages": [m for m in question["messages"] if m["role"] == "user"],
        "tools": question["tools"],
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls
    assert call.function.name in {tool["function"]["name"] for tool in question["tools"]}
    assert isinstance(json.loads(call.function.arguments), dict)
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    (streamed,) = final.message.tool_calls
    assert streamed.function.name == call.function.name
    assert streamed.function.arguments == call.function.arguments


def test_completions_with_log_probabilities(client: Any) -> None:
    answer = client.completions.create(
        model="glm4-mini", prompt=["北京", "x"], max_tokens=3, logprobs=2, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("北京")
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    stream = client.completions.create(model="x", prompt="北京", max_tokens=3, stream=True)
    assert len(list(stream)) >= 1


def test_a_response_whole_and_streamed(client: Any) -> None:
    asked = {"model": "glm4-mini", "input": "请介绍一下北京", "temperature": 0}
    whole = client.responses.create(**asked)
    assert (whole.status, "首都" in whole.output_text) == ("completed", True)
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert final.usage.total_tokens == whole.usage.total_tokens
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"
    cut = client.responses.create(**asked, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_response_with_tools_and_their_results(client: Any, question: dict[str, Any]) -> None:
    tools = [{"type": "function", "strict": False, **t["function"]} for t in question["tools"]]
    user = next(m["content"] for m in question["messages"] if m["role"] == "user")
    asked = {"model": "glm4-mini", "tools": tools, "temperature": 0}
    first = client.responses.create(**asked, input=user)
    (call,) = [item for item in first.output if item.type == "function_call"]
    with client.responses.stream(**asked, input=user) as stream:
        pieces = [e for e in stream if e.type == "response.function_call_arguments.delta"]
    assert "".join(piece.delta for piece in pieces) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"ok": 1}'}
    second = client.responses.create(
        **asked, input=[{"role": "user", "content": user}, call.to_dict(), result]
    )
    assert second.status in ("completed", "incomplete")


def test_no_response_is_stored(client: Any) -> None:
    for action in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="stores none"):
            action("resp_1")
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model="x", input="x", previous_response_id="resp_1")


def test_models_are_listed(client: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, client.models.retrieve("glm4-mini").id) == ("glm4-mini", "glm4-mini")


def test_errors_are_the_clients_own(client: Any, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature must be"):
        client.chat.completions.create(model="x", messages=BEIJING, temperature=-1)
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
