"""What stands in Ray Serve's HTTP proxies before all ingresses: an ingress may be lost, too.

Ray Serve calls `middlewares` in each of its proxies where the environment says
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=mindformers_glm.serving.ray.proxy:middlewares. By itself a
proxy answers a plain 500 for an ingress that dies, or cuts the stream.
"""

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindformers_glm.serving.ray.reply import Reply
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.service import json_response

# What an ingress puts on all of its answers, so that a proxy's own errors can be told from them.
MARK = (b"x-mindformers-glm-ingress", b"1")
_MOST_TRIES = 5
_PAUSE_S = 0.3
_KEPT_BYTES = 64 * 2**20  # of a body, to be sent again


def middlewares() -> list[Middleware]:
    """For Ray Serve."""
    return [Middleware(SecondTry)]


class SecondTry:
    """Has another ingress answer where one is lost; after the first token, says that it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _KeptBody(receive)
        reply = Reply(send)
        for number in range(_MOST_TRIES):
            if number:
                await asyncio.sleep(_PAUSE_S)
            attempt = _Attempt(reply)
            await self._app(dict(scope), body.replay(), attempt.send)
            if attempt.is_whole or body.is_gone:
                return
            if reply.has_tokens or not body.is_kept:
                break
        path = scope["path"]
        problem = RequestError(503, "The ingress that led to this answer is lost: ask again.")
        if reply.has_begun:
            await reply.fail(path, problem)
        else:
            response = json_response(problem.body(path), status=503, headers={"retry-after": "1"})
            await response(scope, receive, send)


class _Attempt:
    """Passes on what an ingress answers; drops what a proxy says for one that is lost."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._is_lost = False
        self.is_whole = False

    async def send(self, message: Message) -> None:
        """Take a message of the application."""
        if message["type"] == "http.response.start":
            headers = [tuple(pair) for pair in message.get("headers", ())]
            is_marked = MARK in headers
            self._is_lost = not is_marked and message["status"] >= 500
            if self._is_lost or self._reply.has_begun:
                return
            await self._reply.begin(message["status"], [one for one in headers if one != MARK])
        elif message["type"] == "http.response.body" and not self._is_lost:
            content = message.get("body", b"")
            if message.get("more_body", False):
                await self._reply.go_on(content)
            else:
                await self._reply.end(content)
                self.is_whole = True


class _KeptBody:
    """Reads a request, and gives it again to whoever asks next.

    Attributes:
        is_gone: the client has closed the connection.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._num_bytes = 0
        self.is_gone = False

    @property
    def is_kept(self) -> bool:
        """Whether the whole of it can be given again."""
        return self._num_bytes <= _KEPT_BYTES

    def replay(self) -> Receive:
        """What reads it from the beginning on."""
        kept = iter(list(self._messages))

        async def receive() -> Message:
            message = next(kept, None)
            if message is None:
                message = await self._receive()
                self._keep(message)
            return message

        return receive

    def _keep(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.is_gone = True
            return
        self._num_bytes += len(message.get("body", b""))
        if self.is_kept:
            self._messages.append(message)
        else:
            self._messages.clear()
