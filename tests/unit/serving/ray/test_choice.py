"""Which replica a prompt goes to: by its beginning, bounded by load."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from mindformers_glm.serving.ray.choice import choose_replica, prompt_beginning


@dataclass
class Server:
    name: str
    load: int = 0


def _servers(*loads: int) -> list[Server]:
    return [Server(f"r{number}", load) for number, load in enumerate(loads)]


def _chat(*contents: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": c} for c in contents]}).encode()


def test_one_beginning_leads_to_one_replica_whatever_their_order() -> None:
    servers = _servers(0, 0, 0, 0)
    assert choose_replica(servers, b"same") is choose_replica(servers[::-1], b"same")


def test_beginnings_are_spread() -> None:
    servers = _servers(0, 0, 0, 0)
    counts = dict.fromkeys(("r0", "r1", "r2", "r3"), 0)
    for number in range(400):
        counts[choose_replica(servers, str(number).encode()).name] += 1  # type: ignore[union-attr]
    assert all(60 < count < 140 for count in counts.values()), counts


def test_a_replica_that_goes_takes_only_its_own_prompts_along() -> None:
    servers = _servers(0, 0, 0)
    for number in range(50):
        before = choose_replica(servers, str(number).encode())
        after = choose_replica(servers[:2], str(number).encode())
        assert before is servers[2] or before is after


def test_load_bounds_what_one_beginning_brings() -> None:
    servers = _servers(0, 0, 0)
    for _ in range(30):
        choose_replica(servers, b"everybody's system prompt").load += 1  # type: ignore[union-attr]
    loads = sorted(server.load for server in servers)
    assert loads[-1] <= 13  # 1.25 times the mean of 10, rounded up
    assert loads[0] < 8  # and yet they are not just dealt out


def test_a_prompt_without_beginning_goes_to_the_least_loaded() -> None:
    servers = _servers(3, 1, 2)
    assert choose_replica(servers, b"") is servers[1]


def test_replicas_that_failed_are_avoided_while_others_are_there() -> None:
    servers = _servers(0, 9)
    assert choose_replica(servers, b"x", {"r0"}) is servers[1]
    assert choose_replica(servers, b"x", {"r0", "r1"}) is not None
    assert choose_replica([], b"x") is None


def test_a_longer_conversation_begins_as_it_did() -> None:
    system = "s" * 2000
    assert prompt_beginning(_chat(system, "a")) == prompt_beginning(_chat(system, "b", "c"))
    assert prompt_beginning(_chat("a")) != prompt_beginning(_chat("b"))


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "text"},
        {"prompt": [1, 2, 3]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "t"}]}]},
        {"inputs": "text", "parameters": {}},
        {"system": "s", "messages": []},
    ],
)
def test_every_route_has_a_beginning(fields: dict[str, Any]) -> None:
    assert prompt_beginning(json.dumps(fields).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": "m"}'])
def test_what_is_no_request_has_none(body: bytes) -> None:
    assert prompt_beginning(body) == b""
