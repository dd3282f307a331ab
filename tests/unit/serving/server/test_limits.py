"""Clients that go away, too many, too slow, too long; and how the server ends."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import pytest
from starlette.types import Message

from mindformers_glm.engine.engine_thread import Milestone
from mindformers_glm.serving.server.engine_link import EngineLink, Limits
from mindformers_glm.serving.server.event_stream import ErrorEvent, EventStream, SseEvent
from mindformers_glm.serving.server.metrics import Metrics
from tests.engine.fake_runner import FakeRunner
from tests.unit.serving.server.conftest import StartServer
from tests.unit.serving.server.served_model import ScriptedRunner, ServedModel, read_events

PATH = "/v1/completions"
LONG = {"prompt": "abc", "max_tokens": 4000, "ignore_eos": True}


def _wait_until(is_so: Callable[[], bool], timeout_s: float = 15.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def _send(server: ServedModel, body: dict[str, Any]) -> socket.socket:
    """Send a request and leave the answer unread."""
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    client.sendall(head.encode() + content)
    return client


def _read_all(client: socket.socket) -> bytes:
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def _read_until(client: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        piece = client.recv(65536)
        assert piece
        found += piece
    return found


def _is_cut(client: socket.socket, sent: bytes) -> bool:
    try:
        client.sendall(sent)
    except OSError:
        return True
    return False


def _is_idle(server: ServedModel) -> bool:
    state = server.link.state
    return state.num_free_blocks == state.num_blocks and server.link.num_open == 0


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = ScriptedRunner.execute

    def wait(runner: ScriptedRunner, batch: Any) -> Any:
        time.sleep(0.005)
        return execute(runner, batch)

    monkeypatch.setattr(ScriptedRunner, "execute", wait)


@pytest.mark.usefixtures("slow_steps")
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks(server: ServedModel, is_stream: bool) -> None:
    client = _send(server, LONG | {"stream": is_stream, "n": 2, "temperature": 1})
    _wait_until(lambda: server.link.state.num_running == 2)
    assert not _is_idle(server)
    num_steps = server.link.state.num_steps
    client.close()
    _wait_until(lambda: _is_idle(server))
    # Hundreds were left to do.
    assert server.link.state.num_steps < num_steps + 50


@pytest.mark.usefixtures("slow_steps")
def test_a_client_that_goes_away_in_the_queue_leaves_it(server: ServedModel) -> None:
    clients = [_send(server, LONG) for _ in range(40)]
    _wait_until(lambda: server.link.state.num_waiting == 8)
    for client in clients:
        client.close()
    _wait_until(lambda: _is_idle(server) and server.link.state.num_waiting == 0)


def test_the_queue_has_an_end(start_server: StartServer) -> None:
    server = start_server(max_answers=3)
    server.runner.pause.clear()
    clients = [_send(server, LONG) for _ in range(3)]
    _wait_until(lambda: server.link.num_open == 3)
    status, headers, content = server.request("POST", PATH, {"prompt": "x"})
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert json.loads(content)["error"]["code"] == "queue_full"
    status, message = server.refusal(PATH, prompt=["x"] * 4)
    assert (status, "ask for fewer" in message) == (400, True)
    assert server.request("GET", "/health")[0] == 200
    for client in clients:
        client.close()
    server.runner.pause.set()
    _wait_until(lambda: _is_idle(server))
    assert server.post(PATH, prompt="x", max_tokens=1)


def test_a_request_has_a_time_limit(start_server: StartServer) -> None:
    server = start_server(timeout_s=0.4)
    server.runner.pause.clear()
    status, message = server.refusal(PATH, **LONG)
    assert (status, message) == (504, "The answer was not finished within 0.4 s.")
    server.runner.pause.set()
    _wait_until(lambda: _is_idle(server))


@pytest.mark.usefixtures("slow_steps")
def test_a_stream_that_is_too_long_ends_with_an_error_event(start_server: StartServer) -> None:
    server = start_server(timeout_s=0.5)
    events = server.events(PATH, **LONG)
    assert events[0]["choices"][0]["text"]
    assert events[-1]["error"]["type"] == "timeout_error"
    _wait_until(lambda: _is_idle(server))


def test_a_stream_that_waits_sends_comments(start_server: StartServer) -> None:
    server = start_server(keep_alive_s=0.05)
    server.runner.pause.clear()
    client = _send(server, {"prompt": "abc", "max_tokens": 2, "stream": True})
    time.sleep(0.5)
    server.runner.pause.set()
    found = b""
    while b"[DONE]" not in found:
        found += client.recv(65536)
    assert found.count(b": keep-alive\n\n") >= 3


def test_a_client_that_reads_nothing_is_cut(start_server: StartServer) -> None:
    server = start_server(client_timeout_s=0.4, max_model_len=60000)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", server.port))
    client.settimeout(20)
    body = json.dumps({"prompt": "abc", "max_tokens": 50000, "stream": True, "ignore_eos": True})
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    client.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
    _wait_until(lambda: server.link.num_open == 1)
    _wait_until(lambda: _is_idle(server), 40)
    assert b"[DONE]" not in _read_all(client)


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/comp", b"GET / HTTP/1.1\r\nhost: x\r\na: b"],
    ids=["nothing", "half a line", "half a head"],
)
def test_a_head_that_does_not_come_is_not_waited_for(
    start_server: StartServer, sent: bytes
) -> None:
    server = start_server(client_timeout_s=0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(sent)
        with suppress(ConnectionResetError):
            assert client.recv(10) == b""


def test_a_body_that_does_not_come_is_not_waited_for(start_server: StartServer) -> None:
    server = start_server(client_timeout_s=0.3)
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        assert b" 408 " in client.recv(1000)


def test_a_body_that_goes_on_after_its_answer_is_cut(start_server: StartServer) -> None:
    server = start_server(client_timeout_s=0.3)
    head = "POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head.encode())
        assert b" 404 " in client.recv(1000)
        _wait_until(lambda: _is_cut(client, b"a"))


def test_a_step_that_ends_after_the_loop_is_no_failure() -> None:
    link = EngineLink(lambda: pytest.fail("not opened"), Limits(1, 1.0), Metrics("a"))
    loop = asyncio.new_event_loop()
    link.attach(loop)
    loop.close()
    link._deliver([("r0", Milestone.ACCEPTED)])


@pytest.mark.usefixtures("slow_steps")
def test_a_prompt_of_30000_tokens_does_not_stop_the_others(start_server: StartServer) -> None:
    server = start_server(max_model_len=40000, prefill_tokens_beside_decode=64)
    client = _send(server, {"prompt": [1], "max_tokens": 300, "stream": True, "ignore_eos": True})
    _wait_until(lambda: server.link.state.num_running == 1)
    long = _send(server, {"prompt": [2] * 30000, "max_tokens": 1})
    _wait_until(lambda: server.link.state.num_running == 2)
    num_steps = len(server.runner.rows_per_step)
    assert b"[DONE]" in _read_until(client, b"[DONE]")
    assert server.link.num_open == 1  # the long prompt is still being read
    assert max(server.runner.rows_per_step[num_steps : num_steps + 50]) <= 65
    long.close()
    _wait_until(lambda: _is_idle(server))


@pytest.mark.usefixtures("slow_steps")
@pytest.mark.parametrize("num_heard", [1, 2])  # 2: a launcher hands on what all have got
def test_a_signal_lets_answers_come_to_their_end(start_server: StartServer, num_heard: int) -> None:
    server = start_server()
    clients = [
        _send(server, {"prompt": "abc", "max_tokens": 60, "ignore_eos": True, "stream": is_stream})
        for is_stream in (True, False)
    ]
    _wait_until(lambda: server.link.state.num_running == 2)
    for _ in range(num_heard):
        server.server.ask_to_end()
    streamed, whole = map(_read_all, clients)
    assert b"[DONE]" in streamed
    assert b'"completion_tokens":60' in whole
    assert server.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        server.request("GET", "/health")


@pytest.mark.usefixtures("slow_steps")
def test_a_second_signal_ends_them(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mindformers_glm.serving.server.run_server._ONE_SIGNAL_S", 0.0)
    server = start_server()
    client = _send(server, LONG | {"stream": True})
    _wait_until(lambda: server.link.state.num_running == 1)
    server.server.ask_to_end()
    server.server.ask_to_end()
    assert b"The server ends" in _read_all(client)
    assert server.stop() == 0


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_dead_engine_is_told_and_ends_the_server(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    server = start_server()
    server.runner.pause.clear()
    client = _send(server, LONG | {"stream": is_stream})
    _wait_until(lambda: server.link.num_open == 1)

    def fail(runner: FakeRunner, batch: Any) -> Any:
        raise RuntimeError("out of memory at 0xdead")

    monkeypatch.setattr(FakeRunner, "execute", fail)
    server.runner.pause.set()
    found = client.recv(65536)
    while not found.endswith((b"}}", b"\r\n0\r\n\r\n", b"}\n\n\r\n")):
        found += client.recv(65536)
    assert b"The engine has failed" in found
    assert b"0xdead" not in found
    assert is_stream or b" 503 " in found
    assert server.request("GET", "/health")[0] == 503
    client.close()
    _wait_until(lambda: not server._thread.is_alive())
    assert server.server.exit_code == 1


@pytest.mark.usefixtures("slow_steps")
def test_an_answer_that_fails_ends_alone(
    server: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_of = FakeRunner._hash

    def spoil(runner: FakeRunner, history: Any) -> Any:
        is_bad = history[0] == 7 and len(history) > 4
        return hash_of(runner, history) * (float("nan") if is_bad else 1)

    monkeypatch.setattr(FakeRunner, "_hash", spoil)
    status, message = server.refusal(PATH, prompt=[7, 7], max_tokens=9)
    assert (status, "not a number" in message) == (500, True)
    events = server.events(PATH, prompt=[7, 7], max_tokens=9)
    assert events[0]["choices"][0]["text"]
    assert events[-1]["error"]["type"] == "server_error"
    assert server.post(PATH, prompt=[8, 8], max_tokens=3)


def test_comments_and_events_are_read_apart() -> None:
    content = b': x\n\nevent: a\ndata: {"b":1}\n\ndata: [DONE]\n\n'
    assert list(read_events(content)) == [("a", {"b": 1}), ("", "[DONE]")]


def test_a_stream_nobody_has_begun_to_read_is_closed() -> None:
    closed: list[bool] = []

    async def events() -> AsyncGenerator[list[SseEvent], None]:
        yield [("", "x")]

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def fail(message: Message) -> None:
        raise OSError

    stream = EventStream(events(), ErrorEvent("/"), {}, 1.0, lambda: closed.append(True))
    with pytest.raises(OSError):  # noqa: PT011  the one above
        asyncio.run(stream({}, gone, fail))
    assert closed == [True]
