"""Requests whose answers are known beforehand, and what an answer says in one form."""

import json
import random
from typing import Any, TypeAlias

from raw_http import Answer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# A route and a body; `stream` is added when it is sent.
KnownRequest: TypeAlias = "tuple[str, dict[str, Any]]"
# Of each choice: text, thoughts, calls as (name, arguments), finish_reason, tokens of logprobs.
Said: TypeAlias = "list[tuple[str, str, list[tuple[str, str]], str | None, list[str]]]"

_QUESTIONS = ("请介绍一下北京", "What is the capital of France?", "3 + 4 = ?", "你好", "写一首诗")
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["北京", "Paris"]}, "size": {"type": "integer"}},
    "required": ["city", "size"],
    "additionalProperties": False,
}


def make_requests(seed: int, count: int, vocab_size: int = 2_000) -> list[KnownRequest]:
    """Requests of all kinds, each with a seed of its own where it draws."""
    rng = random.Random(f"requests {seed}")
    makers = (_greedy, _drawn, _ids, _several, _with_tools, _called, _shaped, _chosen, _stopped)
    return [makers[i % len(makers)](rng, vocab_size) for i in range(count)]


def _chat(rng: random.Random, **fields: Any) -> KnownRequest:
    turns = [{"role": "user", "content": rng.choice(_QUESTIONS)}]
    return CHAT, {"messages": turns, "max_tokens": rng.randint(8, 60), **fields}


def _greedy(rng: random.Random, vocab_size: int) -> KnownRequest:
    return _chat(rng, temperature=0)


def _drawn(rng: random.Random, vocab_size: int) -> KnownRequest:
    return _chat(rng, temperature=1.2, seed=rng.getrandbits(40), logprobs=True, top_logprobs=2)


def _ids(rng: random.Random, vocab_size: int) -> KnownRequest:
    prompt = rng.choices(range(10, vocab_size), k=rng.randint(1, 400))
    body = {"prompt": prompt, "max_tokens": rng.randint(1, 60), "ignore_eos": True}
    return COMPLETIONS, body | {"temperature": 0, "logprobs": 1}


def _several(rng: random.Random, vocab_size: int) -> KnownRequest:
    prompt = rng.choices(range(10, vocab_size), k=rng.randint(1, 100))
    body = {"prompt": prompt, "max_tokens": 20, "n": 3, "temperature": 1.0}
    return COMPLETIONS, body | {"seed": rng.getrandbits(31), "presence_penalty": 0.5}


def _with_tools(rng: random.Random, vocab_size: int) -> KnownRequest:
    return _chat(rng, tools=[_WEATHER], temperature=0)


def _called(rng: random.Random, vocab_size: int) -> KnownRequest:
    return _chat(rng, tools=[_WEATHER], tool_choice="required", temperature=0, max_tokens=100)


def _shaped(rng: random.Random, vocab_size: int) -> KnownRequest:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": _SCHEMA}}
    return _chat(rng, response_format=form, seed=rng.getrandbits(31), max_tokens=100)


def _chosen(rng: random.Random, vocab_size: int) -> KnownRequest:
    return _chat(rng, guided_choice=["yes", "no", "也许"], seed=rng.getrandbits(31))


def _stopped(rng: random.Random, vocab_size: int) -> KnownRequest:
    return _chat(rng, stop=["是", "the"], temperature=0.9, seed=rng.getrandbits(31))


def read_answer(answer: Answer, *, is_stream: bool) -> Said:
    """What an answer says.

    Raises:
        ValueError: it is an error, or not whole.
    """
    if answer.status != 200 or not answer.is_whole:
        raise ValueError(f"status {answer.status}, whole {answer.is_whole}: {answer.body[:300]!r}")
    return _read_stream(answer.body) if is_stream else _read_whole(answer.body)


def _read_whole(body: bytes) -> Said:
    choices = json.loads(body)["choices"]
    said = []
    for choice in choices:
        message = choice.get("message", choice)
        calls = [
            (call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ]
        text = message.get("content") if "message" in choice else choice["text"]
        thoughts = message.get("reasoning_content") or ""
        said.append((text or "", thoughts, calls, choice["finish_reason"], _tokens(choice)))
    return said


def _read_stream(body: bytes) -> Said:
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        raise ValueError(f"the stream ends without [DONE]: {body[-300:]!r}")
    found: dict[int, dict[str, Any]] = {}
    for event in map(json.loads, events[:-1]):
        if event.get("error"):
            raise ValueError(f"an error in the stream: {event['error']}")
        for choice in event["choices"]:
            _add(found.setdefault(choice["index"], _nothing()), choice)
    return [
        (
            one["text"],
            one["thoughts"],
            list(map(tuple, one["calls"].values())),
            one["end"],
            one["tokens"],
        )
        for _, one in sorted(found.items())
    ]


def _nothing() -> dict[str, Any]:
    return {"text": "", "thoughts": "", "calls": {}, "end": None, "tokens": []}


def _add(one: dict[str, Any], choice: dict[str, Any]) -> None:
    delta = choice.get("delta", choice)
    one["text"] += delta.get("content" if "delta" in choice else "text") or ""
    one["thoughts"] += delta.get("reasoning_content") or ""
    for call in delta.get("tool_calls") or ():
        kept = one["calls"].setdefault(call["index"], ["", ""])
        kept[0] += call["function"].get("name") or ""
        kept[1] += call["function"].get("arguments") or ""
    one["end"] = choice.get("finish_reason") or one["end"]
    one["tokens"] += _tokens(choice)


def _tokens(choice: dict[str, Any]) -> list[str]:
    found = choice.get("logprobs") or {}
    if "content" in found:
        return [entry["token"] for entry in found["content"] or ()]
    return list(found.get("tokens") or ())
