"""Server-sent events: an answer as it grows, for as long as somebody listens."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any, TypeAlias

from starlette.types import Receive, Scope, Send

from mindformers_glm.serving.server.errors import DEFECT, RequestError

# (name of the event or "", its data); None: nothing to say yet.
SseEvent: TypeAlias = "tuple[str, dict[str, Any] | str] | None"
_KEEP_ALIVE = b": keep-alive\n\n"
# json.dumps makes one for every call that is given more than a value.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class SlowClientError(Exception):
    """A client that reads nothing of its answer for too long."""


def to_json(value: Any) -> bytes:
    """Strict JSON in UTF-8; half a surrogate pair, which is no character, becomes a mark."""
    return _ENCODER.encode(value).encode("utf-8", "replace")


def write_event(event: SseEvent) -> bytes:
    """An event as it goes over the wire."""
    if event is None:
        return _KEEP_ALIVE
    name, data = event
    head = f"event: {name}\n".encode() if name else b""
    body = data.encode() if isinstance(data, str) else to_json(data)
    return head + b"data: " + body + b"\n\n"


class EventStream:
    """A response that sends events; what makes them is ended when the client goes away.

    Args:
        events: batches of events, each batch sent at once; an error ends them.
        error_event: how the route tells an error in its stream.
        headers: besides those of an event stream.
        client_timeout_s: longest time in which the client takes nothing.
        close: called at the end, also where no event was ever asked for.
    """

    def __init__(
        self,
        events: AsyncGenerator[Iterable[SseEvent], None],
        error_event: "ErrorEvent",
        headers: Mapping[str, str],
        client_timeout_s: float,
        close: Callable[[], None],
    ) -> None:
        self._events = events
        self._error_event = error_event
        self._headers = headers
        self._client_timeout_s = client_timeout_s
        self._close = close
        self._is_slow = False
        self._sending_since_s: float | None = None  # by the event loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._respond(receive, send)
        finally:
            self._close()  # a generator that has not begun does nothing when it is closed

    async def _respond(self, receive: Receive, send: Send) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # or nginx collects the pieces
            **self._headers,
        }
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        sender = self._sender = asyncio.ensure_future(self._send_all(send))
        self._watch()
        gone = asyncio.ensure_future(wait_until_gone(receive))
        try:
            await asyncio.wait((sender, gone), return_when=asyncio.FIRST_COMPLETED)
            if self._is_slow:
                raise SlowClientError
            if sender.done():
                await sender
        finally:
            self._watcher.cancel()
            for task in (sender, gone):
                task.cancel()
            await asyncio.gather(sender, gone, return_exceptions=True)
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        try:
            async for batch in self._events:
                content = b"".join(map(write_event, batch))
                if content:
                    await self._send(send, content)
        except RequestError as problem:
            await self._send(send, write_event(self._error_event(problem)))
        except Exception:
            await self._send(send, write_event(self._error_event(RequestError(500, DEFECT))))
            raise
        await self._send(send, b"", more_body=False)

    async def _send(self, send: Send, content: bytes, *, more_body: bool = True) -> None:
        self._sending_since_s = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": content, "more_body": more_body})
        self._sending_since_s = None

    def _watch(self) -> None:
        """Give up once a send has taken too long; else look again when the present one would."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        since_s = now_s if self._sending_since_s is None else self._sending_since_s
        if now_s - since_s < self._client_timeout_s:
            # One timer for the whole stream: making one for every token takes longer.
            self._watcher = loop.call_at(since_s + self._client_timeout_s, self._watch)
        else:
            self._is_slow = True
            self._sender.cancel()


class ErrorEvent:
    """Writes an error as the clients of a route expect it in a stream.

    Args:
        name: of the event.
        path: of the route.
        shape: what makes the event's data of the answer's body.
    """

    def __init__(
        self,
        path: str,
        name: str = "",
        shape: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body,
    ) -> None:
        self._path = path
        self._name = name
        self._shape = shape

    def __call__(self, problem: RequestError) -> SseEvent:
        return self._name, self._shape(problem.body(self._path))


async def wait_until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
