"""What stands before all routes: the access log, the API key, and errors as answers."""

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindformers_glm.core.errors import GlmError
from mindformers_glm.serving.server.errors import DEFECT, RequestError, tell_defect
from mindformers_glm.serving.server.event_stream import SlowClientError
from mindformers_glm.serving.server.metrics import Metrics
from mindformers_glm.serving.server.service import ClientGoneError, json_response
from mindformers_glm.system.log import write_line

# Paths that need no key: a balancer asks them.
_OPEN_PATHS = ("/health", "/ping")
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_UNSAFE = re.compile(r"[^!-~]|[\"\\]")  # all but visible ASCII
_MAX_PATH = 100
_CLIENT_GONE = 499  # as nginx writes it: no answer was sent


class AccessLog:
    """Writes a line for each request, and lets no exception out.

    Args:
        metrics: count answers by their status.
        is_on: False: no lines.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, is_on: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._is_on = is_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begin_s = time.monotonic()
        state: dict[str, Any] = scope.setdefault("state", {})
        request_id = _read_request_id(Headers(scope=scope))
        status = _CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except SlowClientError:
            _abort(state)
        except Exception as problem:
            tell_defect(problem)  # the connection is closed
        finally:
            self._metrics.answers.labels(str(status)).inc()
            if self._is_on:
                write_line(_describe(scope, status, time.monotonic() - begin_s, request_id))


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let web pages of these origins, or of all (*), call an application from a browser (CORS)."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "warning", "retry-after"],
    )


class KeyGuard:
    """Refuses requests without one of the keys, as a bearer token or as x-api-key.

    Args:
        keys: compared by their digests, in a time that says nothing of them.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _OPEN_PATHS or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = RequestError(401, "The API key is missing or wrong.", code="invalid_api_key")
        headers = {"www-authenticate": "Bearer"}
        response = json_response(error.body(scope["path"]), status=401, headers=headers)
        await response(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        given = headers.get("x-api-key", "")
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given = token.strip()
        digest = _digest(given.encode("latin-1", "replace"))
        found = [hmac.compare_digest(digest, own) for own in self._digests]  # all of them
        return any(found)


async def handle_errors(
    http: HttpRequest, work: Awaitable[ASGIApp], without_folder: Callable[[str], str]
) -> ASGIApp:
    """Turn an error of a route into its answer.

    Args:
        without_folder: see Service.
    """
    try:
        return await work
    except (ClientGoneError, ClientDisconnect):
        return _say_nothing
    except RequestError as problem:
        error = problem
    except GlmError as problem:
        error = RequestError.of(problem)
    except Exception as problem:
        tell_defect(problem)
        error = RequestError(500, DEFECT)
    if error.status >= 500:
        write_line(f"error: {_UNSAFE.sub('?', http.scope['path'])[:_MAX_PATH]}: {error.message}")
    error.message = without_folder(error.message)
    return json_response(error.body(http.scope["path"]), status=error.status, headers=error.headers)


async def _say_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """The response to nobody."""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _read_request_id(headers: Headers) -> str:
    """The client's own if it can stand in a log line, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _abort(state: dict[str, Any]) -> None:
    """Cut the connection: what waits to be sent is not waited for."""
    abort = state.get("abort")
    if abort is not None:
        abort()


def _describe(scope: Scope, status: int, taken_s: float, request_id: str) -> str:
    """A line of the access log; nothing of the client's can break it."""
    client = scope.get("client") or ("-", 0)
    path = _UNSAFE.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", scope["path"])[:_MAX_PATH]
    usage = scope["state"].get("usage")
    tokens = f" prompt={usage.num_prompt} new={usage.num_new}" if usage is not None else ""
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    method = _UNSAFE.sub("?", scope["method"])[:10]
    return f'{when} {client[0]} "{method} {path}" {status} {taken_s:.3f}s{tokens} id={request_id}'
