"""What llama.cpp's server tests ask of any OpenAI server: invalid requests, and log-probabilities.

After tools/server/tests/unit (test_chat_completion.py, test_completion.py, test_tokenize.py); in
our words, since most of that suite names what its own model answers.
"""

import http.client
import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.clients.conftest import API_KEY

openai = pytest.importorskip("openai")

ASKED: dict[str, Any] = {
    "model": "glm4-mini",
    "temperature": 0,
    "messages": [{"role": "user", "content": "请介绍一下北京"}],
    "max_tokens": 8,
}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def _post(url: str, path: str, body: Any) -> tuple[int, Any]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    headers = {"content-type": "application/json", "authorization": f"Bearer {API_KEY}"}
    content = body if isinstance(body, str) else json.dumps(body)
    connection.request("POST", path, content.encode(), headers)
    response = connection.getresponse()
    found = json.loads(response.read())
    connection.close()
    return response.status, found


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "a text",
        [],
        [123],
        ["a text"],
        [{}],
        [{"role": 123}],
        [{"role": "system", "content": 123}],
        [{"content": "no role"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": [{"type": "unknown"}]}],
        [{"role": "user", "content": [123]}],
        [{"role": "user", "content": {"text": "x"}}],
        [{"role": "nobody", "content": "x"}],
    ],
    ids=json.dumps,
)
def test_messages_that_are_none_are_refused(url: str, messages: Any) -> None:
    status, found = _post(url, "/v1/chat/completions", ASKED | {"messages": messages})
    assert (status, found["error"]["type"]) == (400, "invalid_request_error")
    assert found["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_schema", "json_schema": {"other": 1}}),
        ("response_format", {"type": "json_object", "schema": {"const": "x", "type": "nothing"}}),
        ("response_format", {"type": 123}),
        ("response_format", {"type": "hello"}),
        ("response_format", "json_object"),
        ("max_tokens", "8"),
        ("max_tokens", -1),
        ("temperature", "warm"),
        ("top_logprobs", 5),
        ("logprobs", 5),
        ("logit_bias", {"x": 1}),
        ("logit_bias", 5),
        ("stream", "yes"),
        ("stop", 5),
        ("stop", [5]),
        ("seed", "x"),
        ("n", 0),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "function", "function": {"name": 5}}]),
        ("tools", {"type": "function"}),
        ("tool_choice", "required"),
        ("tool_choice", "sometimes"),
    ],
    ids=repr,
)
def test_fields_of_another_form_are_refused(url: str, field: str, value: Any) -> None:
    status, found = _post(url, "/v1/chat/completions", ASKED | {field: value})
    assert (status, found["error"]["type"]) == (400, "invalid_request_error"), found


@pytest.mark.parametrize("body", ["", "{", "[]", "5", '{"messages": [', "null", '"x"'])
def test_bodies_that_are_no_object_are_refused(url: str, body: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        status, found = _post(url, path, body)
        assert (status, bool(found["error"]["message"])) == (400, True)


@pytest.mark.parametrize("prompt", [None, 5, {}, [], [[]], [1, "x"], ["x", 1], [1.5], [[1], "x"]])
def test_prompts_of_another_form_are_refused(url: str, prompt: Any) -> None:
    status, found = _post(url, "/v1/completions", {"prompt": prompt, "max_tokens": 2})
    assert (status, found["error"]["type"]) == (400, "invalid_request_error"), found


def _check_entry(entry: Any, num_top: int) -> None:
    assert entry.logprob <= 0
    assert math.isfinite(entry.logprob)
    assert entry.bytes is not None
    assert len(entry.top_logprobs) == num_top
    logprobs = [top.logprob for top in entry.top_logprobs]
    assert logprobs == sorted(logprobs, reverse=True)
    assert (entry.token, entry.logprob) == (
        entry.top_logprobs[0].token,
        entry.top_logprobs[0].logprob,
    )


def test_log_probabilities_of_a_chat_whole_and_streamed(client: Any) -> None:
    whole = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=10).choices[0]
    entries = whole.logprobs.content
    assert len(entries) == ASKED["max_tokens"]
    for entry in entries:
        _check_entry(entry, 10)
    text = b"".join(bytes(entry.bytes) for entry in entries).decode()
    assert text.removeprefix("\n") == whole.message.content
    stream = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=10, stream=True)
    streamed, pieces = [], []
    for chunk in stream:
        (choice,) = chunk.choices
        pieces.append(choice.delta.content or "")
        streamed += choice.logprobs.content if choice.logprobs else []
    assert "".join(pieces) == whole.message.content
    assert [entry.to_dict() for entry in streamed] == [entry.to_dict() for entry in entries]


def test_log_probabilities_of_a_completion_whole_and_streamed(client: Any) -> None:
    asked = {"model": "x", "prompt": "北京是", "temperature": 0, "max_tokens": 6, "logprobs": 5}
    whole = client.completions.create(**asked).choices[0]
    assert len(whole.logprobs.tokens) == len(whole.logprobs.token_logprobs) == 6
    for own, top in zip(whole.logprobs.token_logprobs, whole.logprobs.top_logprobs, strict=True):
        assert own == max(top.values()) <= 0
        assert 0 < len(top) <= 5  # of tokens with the same text one is told
    tokens: list[str] = []
    logprobs: list[float] = []
    pieces = []
    for chunk in client.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        pieces.append(choice.text)
        if choice.logprobs:
            tokens += choice.logprobs.tokens
            logprobs += choice.logprobs.token_logprobs
    assert "".join(pieces) == whole.text
    assert (tokens, logprobs) == (whole.logprobs.tokens, whole.logprobs.token_logprobs)


def test_a_text_is_tokenized_and_back(url: str) -> None:
    for text in ("", "你好 world", "🙂\n\n", "<|user|>x"):
        status, found = _post(url, "/tokenize", {"prompt": text})
        assert status == 200
        status, back = _post(url, "/detokenize", {"tokens": found["tokens"]})
        assert (status, back["prompt"]) == (200, text)
