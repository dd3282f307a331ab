"""An answer on its way to the client: what of it is sent decides what can still be done."""

import json
from collections.abc import AsyncIterator, Sequence

from starlette.types import Send

from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import to_json, write_event

_FAILED_TYPES = {"service_unavailable_error", "overloaded_error", "unhealthy"}


class RefusedError(Exception):
    """A replica takes no request now; holds its answer, for where all others refuse too."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(status)
        self.status, self.headers, self.body = status, headers, body


class Reply:
    """The answer to the client: what of it is sent already decides what can still be done.

    Attributes:
        has_begun: the status is sent.
        has_tokens: an event with content is sent; comments do not count.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.has_tokens = False

    async def whole(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], content: bytes
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", str(len(content)).encode())
        await self.begin(status, [*headers, length])
        await self.end(content)

    async def stream(
        self, headers: Sequence[tuple[bytes, bytes]], chunks: AsyncIterator[bytes]
    ) -> None:
        """Send a stream as it comes.

        Raises:
            RefusedError: its first event says that the replica cannot answer.
        """
        async for chunk in chunks:
            if not self.has_tokens and _has_event(chunk) and _is_failure(chunk):
                raise RefusedError(503, list(headers), chunk)
            if not self.has_begun:
                await self.begin(200, headers)
            await self.go_on(chunk)
        if not self.has_begun:
            await self.begin(200, headers)
        await self.end(b"")

    async def go_on(self, chunk: bytes) -> None:
        """Send a piece of a stream."""
        self.has_tokens = self.has_tokens or _has_event(chunk)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def fail(self, path: str, problem: RequestError) -> None:
        """End a stream by an event that says why, in the form of its route."""
        await self.end(_write_failure(path, problem))

    async def end(self, content: bytes) -> None:
        """Send what is left."""
        await self._send({"type": "http.response.body", "body": content, "more_body": False})

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the status."""
        self.has_begun = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )


def _has_event(chunk: bytes) -> bool:
    """Whether there is more in it than comments, which keep a connection alive."""
    return any(line and not line.startswith(b":") for line in chunk.split(b"\n"))


def _is_failure(chunk: bytes) -> bool:
    """Whether the first event of a stream says that the engine is dead or ends."""
    lines = (line for line in chunk.split(b"\n") if line.startswith(b"data: "))
    try:
        event = json.loads(next(lines, b"data: {}").removeprefix(b"data: "))
    except ValueError:
        return False  # a large event comes in pieces; an error is small
    if not isinstance(event, dict):
        return False
    error = event.get("error")
    kinds = [event.get("error_type"), event.get("code")]
    kinds += [error.get("type")] if isinstance(error, dict) else []
    return bool(_FAILED_TYPES & {kind for kind in kinds if isinstance(kind, str)})


def _write_failure(path: str, problem: RequestError) -> bytes:
    body = problem.body(path)
    if path.startswith("/v1/responses"):
        # OpenAI's `error` event has the fields of an error beside its type.
        flat = {"code": body["error"]["type"], "message": problem.message, "param": None}
        return b"event: error\ndata: " + to_json({"type": "error", **flat}) + b"\n\n"
    name = "error" if path.startswith("/v1/messages") else ""
    return write_event((name, body))
