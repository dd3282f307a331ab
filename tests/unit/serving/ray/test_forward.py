"""An ingress's way to replicas that fail as they are told, and a proxy's way to ingresses."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from mindformers_glm.serving.ray.gate import Gate, add_doors
from mindformers_glm.serving.ray.proxy import MARK, SecondTry
from mindformers_glm.serving.ray.table import READY, ReplicaTable

Reply = tuple[int, dict[str, str], bytes]
Write = Callable[[asyncio.StreamWriter], Awaitable[None]]
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
_CHAT = "/v1/chat/completions"


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


async def _whole(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )


async def _stream(writer: asyncio.StreamWriter) -> None:
    writer.write(_STREAM + _chunk("data: 1\n\n") + _chunk("data: [DONE]\n\n") + b"0\r\n\r\n")


async def _cut_at_once(writer: asyncio.StreamWriter) -> None:
    """The connection ends without a word."""


async def _cut_whole(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{")


async def _cut_after_comment(writer: asyncio.StreamWriter) -> None:
    writer.write(_STREAM + _chunk(": keep-alive\n\n"))
    await writer.drain()
    await asyncio.sleep(0.05)


async def _cut_after_token(writer: asyncio.StreamWriter) -> None:
    writer.write(_STREAM + _chunk("data: 1\n\n"))
    await writer.drain()
    await asyncio.sleep(0.05)


async def _dead_engine(writer: asyncio.StreamWriter) -> None:
    error = json.dumps({"error": {"message": "dead", "type": "service_unavailable_error"}})
    writer.write(_STREAM + _chunk(f"data: {error}\n\n") + b"0\r\n\r\n")


async def _full(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nfull")


async def _silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


class Fleet:
    """A gate before servers; `asked` counts the requests of each, `paths` has those of all."""

    def __init__(self, gate: Gate, table: ReplicaTable, asked: list[int], paths: list[str]) -> None:
        self.gate = gate
        self.table = table
        self.asked = asked
        self.paths = paths
        self.entries: dict[str, dict[str, Any]] = {}

    async def ask(self, path: str = _CHAT, body: bytes = _BODY) -> Reply:
        """The answer to one request."""
        return await ask(self.gate, path, body)


async def ask(app: Any, path: str, body: bytes = _BODY, **more: Any) -> Reply:
    """Call an ASGI application; gives status, headers and body. `more` goes into the scope."""
    messages: list[dict[str, Any]] = []
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (message := next(given, None)) is not None:
            return message
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(dict(message))

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    await app(scope | more, receive, send)
    assert [m["type"] for m in messages].count("http.response.start") == 1
    assert not messages[-1].get("more_body", False)
    headers = {k.decode(): v.decode() for k, v in messages[0]["headers"]}
    return messages[0]["status"], headers, b"".join(m.get("body", b"") for m in messages)


@asynccontextmanager
async def fleet_of(*writes: Write) -> AsyncIterator[Fleet]:
    """Servers that answer so, named so that "hi" goes to the first one first."""
    asked = [0] * len(writes)
    table = ReplicaTable()
    paths: list[str] = []
    fleet = Fleet(Gate(table, 10_000, 5.0), table, asked, paths)
    servers = []
    for place, write in enumerate(writes):

        async def serve(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            place: int = place,
            write: Write = write,
        ) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            paths.append(head.split()[1].decode())
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            asked[place] += 1
            await write(writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        fleet.entries[_NAMES[place]] = {"url": url, "state": READY, "beat": 1}
    table.update(fleet.entries)
    try:
        yield fleet
    finally:
        await fleet.gate.close()
        for server in servers:
            server.close()


_NAMES = ("a", "b")


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first server be the one that is chosen first."""
    order = {name: bytes([255 - place]) for place, name in enumerate(_NAMES)}
    monkeypatch.setattr("mindformers_glm.serving.ray.choice._weight", lambda name, _: order[name])


def _run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        (_cut_at_once, _whole, b"{}"),
        (_cut_whole, _whole, b"{}"),
        (_full, _whole, b"{}"),
        (_cut_at_once, _stream, b"data: 1\n\ndata: [DONE]\n\n"),
        (_dead_engine, _stream, b"data: 1\n\ndata: [DONE]\n\n"),
        (_cut_after_comment, _stream, b": keep-alive\n\ndata: 1\n\ndata: [DONE]\n\n"),
    ],
)
def test_before_the_first_token_another_replica_answers(
    first: Write, second: Write, wanted: bytes
) -> None:
    async def work() -> None:
        async with fleet_of(first, second) as fleet:
            status, _, body = await fleet.ask()
            assert (status, body, fleet.asked) == (200, wanted, [1, 1])

    _run(work)


@pytest.mark.parametrize(
    ("path", "head"),
    [(_CHAT, "data: "), ("/v1/messages", "event: error\ndata: "), ("/generate_stream", "data: ")],
)
def test_after_a_token_an_event_in_the_routes_form_says_that_it_is_lost(
    path: str, head: str
) -> None:
    async def work() -> None:
        async with fleet_of(_cut_after_token, _stream) as fleet:
            status, _, body = await fleet.ask(path)
            assert (status, fleet.asked) == (200, [1, 0])
            events = body.decode().split("\n\n")
            assert events[0] == "data: 1"
            assert events[1].startswith(head)
            assert "lost" in json.dumps(json.loads(events[1].removeprefix(head)))

    _run(work)


def test_where_all_queues_are_full_the_client_hears_so() -> None:
    async def work() -> None:
        async with fleet_of(_full, _full) as fleet:
            status, headers, body = await fleet.ask()
            assert (status, headers["retry-after"], body) == (429, "7", b"full")
            assert fleet.asked == [1, 1]

    _run(work)


def test_a_replica_that_goes_silent_is_left_for_another() -> None:
    # Its machine is gone: nobody closes the connection.
    async def work() -> None:
        async with fleet_of(_silent, _whole) as fleet:
            asking = asyncio.ensure_future(fleet.ask())
            while not fleet.asked[0]:
                await asyncio.sleep(0.01)
            fleet.table.update({"b": fleet.entries["b"] | {"beat": 2}})
            assert (await asking)[2] == b"{}"

    _run(work)


def test_a_lost_replica_is_asked_again_when_it_speaks() -> None:
    async def work() -> None:
        async with fleet_of(_cut_at_once, _whole) as fleet:
            await fleet.ask()
            fleet.table.update(fleet.entries)  # what it had said before
            assert [one.name for one in fleet.table.ready] == ["b"]
            fleet.table.update({n: one | {"beat": 2} for n, one in fleet.entries.items()})
            assert len(fleet.table.ready) == 2

    _run(work)


def test_a_draining_replica_gets_nothing_new() -> None:
    async def work() -> None:
        async with fleet_of(_stream, _whole) as fleet:
            fleet.table.update(
                fleet.entries | {"a": fleet.entries["a"] | {"beat": 2, "state": "draining"}}
            )
            assert (await fleet.ask())[2] == b"{}"
            assert fleet.table.targets()[0]["labels"] == {"replica": "a", "state": "draining"}

    _run(work)


def test_a_body_that_is_too_large_is_refused() -> None:
    async def work() -> None:
        async with fleet_of(_whole, _whole) as fleet:
            status, _, body = await fleet.ask(body=b"x" * 20_000)
            assert status == 413
            assert "error" in json.loads(body)
            assert fleet.asked == [0, 0]

    _run(work)


def test_health_is_that_of_the_replicas() -> None:
    async def work() -> None:
        gate = Gate(ReplicaTable(), 100, 1.0)
        assert (await ask(gate, "/health"))[0] == 503
        async with fleet_of(_whole) as fleet:
            assert (await fleet.ask("/health"))[0] == 200
            assert (await fleet.ask("/metrics"))[0] == 404

    _run(work)


@pytest.mark.parametrize("path", ["*", "@example.org/", ""])
def test_what_is_no_path_goes_to_no_other_host(path: str) -> None:
    async def work() -> None:
        async with fleet_of(_whole) as fleet:
            assert (await fleet.ask(path))[0] == 404
            assert fleet.asked == [0]

    _run(work)


def _doors(gate: Gate, *, origins: tuple[str, ...] = (), keys: tuple[str, ...] = ()) -> Any:
    server = {"api_key": keys, "api_key_file": None, "allowed_origins": origins}
    return add_doors(gate, server)


@pytest.mark.parametrize(
    ("path", "raw_path", "wanted"),
    [
        ("/glm/v1/a b", b"/glm/v1/a%20b", "/v1/a%20b"),
        ("/glm/v1/a b", b"/gl%6d/v1/a%20b", "/v1/a%20b"),
        ("/glm", b"/glm", "/"),
        ("/v1/models", b"/v1/models", "/v1/models"),  # without the prefix
    ],
)
def test_replicas_hear_nothing_of_the_applications_prefix(
    path: str, raw_path: bytes, wanted: str
) -> None:
    async def work() -> None:
        async with fleet_of(_whole) as fleet:
            door = _doors(fleet.gate)
            assert (await ask(door, path, raw_path=raw_path, root_path="/glm"))[0] == 200
            assert fleet.paths == [wanted]

    _run(work)


def test_health_below_a_prefix_needs_no_key_and_other_paths_do() -> None:
    async def work() -> None:
        async with fleet_of(_whole) as fleet:
            door = _doors(fleet.gate, keys=("secret",))
            assert (await ask(door, "/glm/health", root_path="/glm"))[0] == 200
            assert (await ask(door, "/glm/replicas", root_path="/glm"))[0] == 401
            key = [(b"authorization", b"Bearer secret")]
            assert (await ask(door, "/glm/replicas", root_path="/glm", headers=key))[0] == 200

    _run(work)


def test_a_web_page_of_an_allowed_origin_may_ask_before_it_gives_its_key() -> None:
    page = [(b"origin", b"http://page"), (b"access-control-request-method", b"POST")]

    async def work() -> None:
        async with fleet_of(_whole) as fleet:
            door = _doors(fleet.gate, origins=("http://page",), keys=("secret",))
            status, headers, _ = await ask(door, _CHAT, method="OPTIONS", headers=page)
            assert (status, headers["access-control-allow-origin"]) == (200, "http://page")
            status, headers, _ = await ask(door, _CHAT, headers=page)
            assert (status, headers["access-control-allow-origin"]) == (401, "http://page")

    _run(work)


class Ingresses:
    """An application whose calls do what they are told, one after the other."""

    def __init__(self, *calls: list[dict[str, Any]]) -> None:
        self.calls = list(calls)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])
        for message in self.calls.pop(0):
            await send(message)


_PLAIN_500 = [
    {"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain")]},
    {"type": "http.response.body", "body": b"Internal Server Error", "more_body": False},
]
_BEGIN = {"type": "http.response.start", "status": 200, "headers": [MARK]}
_TOKEN = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
_COMMENT = {"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True}
_LAST = {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.mark.parametrize("first", [_PLAIN_500, [], [_BEGIN], [_BEGIN, _COMMENT]])
def test_a_lost_ingress_is_replaced_before_the_first_token(first: list[dict[str, Any]]) -> None:
    app = Ingresses(first, [_BEGIN, _TOKEN, _LAST])

    async def work() -> None:
        status, headers, body = await ask(SecondTry(app), _CHAT)
        assert status == 200
        assert body.endswith(b"data: 1\n\n")
        assert MARK[0].decode() not in headers
        assert app.bodies == [_BODY, _BODY]

    _run(work)


def test_a_lost_ingress_is_told_after_a_token() -> None:
    async def work() -> None:
        _, _, body = await ask(SecondTry(Ingresses([_BEGIN, _TOKEN])), _CHAT)
        assert "lost" in json.loads(body.decode().split("data: ")[2])["error"]["message"]

    _run(work)


def test_an_error_of_an_ingress_is_passed_on() -> None:
    own = [_BEGIN | {"status": 503}, _LAST]

    async def work() -> None:
        assert (await ask(SecondTry(Ingresses(own)), _CHAT))[0] == 503

    _run(work)
