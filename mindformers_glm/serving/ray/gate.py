"""The application of an ingress: everything goes to a replica but health and addresses."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindformers_glm.config.environment import api_keys
from mindformers_glm.serving.ray import board as ray_board
from mindformers_glm.serving.ray.forward import Forwarder
from mindformers_glm.serving.ray.proxy import MARK
from mindformers_glm.serving.ray.table import ReplicaTable
from mindformers_glm.serving.ray.words import read_words
from mindformers_glm.serving.server.door import KeyGuard, allow_origins
from mindformers_glm.serving.server.errors import DEFECT, RequestError, tell_defect
from mindformers_glm.serving.server.json_body import read_body
from mindformers_glm.serving.server.service import json_response
from mindformers_glm.system.log import write_line

REPLICAS = "/replicas"
_HEALTH = ("/health", "/ping", "/-/healthz")
_LOOK_S = 0.5
_FORGOTTEN_S = 60.0


class Gate:
    """Answers the requests that come to an ingress.

    Args:
        table: the replicas.
        max_body_size: of a request, in bytes.
        client_timeout_s: in which its body must have come.
    """

    def __init__(self, table: ReplicaTable, max_body_size: int, client_timeout_s: float) -> None:
        self._table = table
        self._forwarder = Forwarder(table)
        self._max_body_size = max_body_size
        self._client_timeout_s = client_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except ClientDisconnect:
            return
        except RequestError as problem:
            error = problem
        except Exception as problem:
            tell_defect(problem)
            error = RequestError(500, DEFECT)
        else:
            return
        response = json_response(
            error.body(scope["path"]), status=error.status, headers=error.headers
        )
        await response(scope, receive, send)

    async def close(self) -> None:
        """End all connections."""
        await self._forwarder.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not path.startswith("/"):  # OPTIONS *: what follows a host's name must not be part of it
            raise RequestError(404, f"There is no route {path!r:.100}.")
        if path in _HEALTH:
            if not self._table.ready:
                raise RequestError(503, "No replica is ready.")
            await json_response({})(scope, receive, send)
        elif path == REPLICAS:
            await json_response(self._table.targets())(scope, receive, send)
        elif path == "/metrics":
            raise RequestError(404, f"Each replica has its own /metrics: {REPLICAS} lists them.")
        else:
            body = await self._read_body(HttpRequest(scope, receive))
            await self._forwarder.answer(scope, body, receive, send)

    async def _read_body(self, request: HttpRequest) -> bytes:
        try:
            return await asyncio.wait_for(
                read_body(request, self._max_body_size), self._client_timeout_s
            )
        except asyncio.TimeoutError:
            raise RequestError(408, "The request's body did not arrive in time.") from None


def add_doors(gate: ASGIApp, server: Mapping[str, Any]) -> ASGIApp:
    """What stands before a gate: the key, web pages of other origins, the application's prefix.

    Args:
        server: settings of the servers behind it.
    """
    keys = api_keys(server["api_key"], server["api_key_file"])
    app = KeyGuard(gate, keys) if keys else gate
    if origins := server["allowed_origins"]:
        app = allow_origins(app, origins)

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        await app(_below_prefix(scope), receive, _mark(send))

    return enter


class Ingress:
    """The ASGI application of a process of Ray Serve, with the task that follows the replicas.

    Args:
        words: settings of the servers behind it.
    """

    def __init__(self, words: Sequence[str]) -> None:
        from ray import serve

        server = read_words(words).server
        self._application = serve.get_replica_context().app_name
        self._table = ReplicaTable()
        self._gate = Gate(self._table, server["max_body_size"], server["client_timeout_s"])
        self._app = add_doors(self._gate, server)
        self._following: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._following = asyncio.ensure_future(self._follow())
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._following is not None:
                    self._following.cancel()
                await self._gate.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _follow(self) -> None:
        """Look who is there, again and again; a head that is away changes nothing."""
        while True:
            try:
                entries = await asyncio.to_thread(ray_board.read_all, self._application)
                self._table.update(entries)
                if silent := self._table.silent(_FORGOTTEN_S):
                    await asyncio.to_thread(ray_board.take_away, self._application, silent)
            except Exception as problem:
                write_line(f"error: an ingress cannot ask the head for replicas: {problem}")
            await asyncio.sleep(_LOOK_S)


def _below_prefix(scope: Scope) -> Scope:
    """The request as a replica knows its paths, without the application's route_prefix."""
    prefix, path = scope.get("root_path", ""), scope["path"]
    if not prefix or not path.startswith(prefix):
        return scope
    rest = path[len(prefix) :] or "/"
    raw: bytes = scope.get("raw_path") or b""
    raw_rest = raw[len(prefix) :] if raw.startswith(prefix.encode()) else quote(rest).encode()
    return {**scope, "root_path": "", "path": rest, "raw_path": raw_rest or b"/"}


def _mark(send: Send) -> Send:
    """Let the proxy see that an ingress answers."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), MARK]
        await send(message)

    return send_marked
