"""Takes a request to a replica and its answer back; before the first token, to another one too."""

import asyncio
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from mindformers_glm.serving.ray.choice import prompt_beginning
from mindformers_glm.serving.ray.reply import RefusedError, Reply
from mindformers_glm.serving.ray.table import Replica, ReplicaTable
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import wait_until_gone

if TYPE_CHECKING:
    import aiohttp

_PATIENCE_S = 30.0  # for a replica, where there is none
_MOST_TRIES = 5
_CONNECT_S = 5.0
_LARGE = 64 * 1024  # bytes of a body that take some time to be parsed
_PAUSE_S = 0.2  # before the same replica is asked again
# Of one connection and not of the message (RFC 9110, 7.6.1), or written anew.
_OF_THE_CONNECTION = {
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_TRY_ANOTHER = (429, 503)  # its queue is full; it ends, or its engine is dead


class _LostError(Exception):
    """A replica did not answer, or not to the end."""


class Forwarder:
    """Answers requests by the replicas of a table."""

    def __init__(self, table: ReplicaTable) -> None:
        self._table = table
        self._session: aiohttp.ClientSession | None = None

    async def answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Answer a request whose body has been read; ends early where its client has gone.

        Raises:
            RequestError: no replica answers, and nothing of an answer was sent.
        """
        working = asyncio.ensure_future(self._try_all(scope, body, Reply(send)))
        gone = asyncio.ensure_future(wait_until_gone(receive))
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()

    async def _try_all(self, scope: Scope, body: bytes, reply: Reply) -> None:
        beginning = (
            prompt_beginning(body)
            if len(body) <= _LARGE
            else await asyncio.to_thread(prompt_beginning, body)  # others' answers go on
        )
        failed: list[str] = []
        refused: RefusedError | None = None
        for _ in range(_MOST_TRIES):
            replica = await self._table.choose(beginning, failed, _PATIENCE_S)
            if replica is None:
                break
            if replica.name in failed:
                if refused is not None:  # all others have refused, too
                    break
                await asyncio.sleep(_PAUSE_S)
            try:
                await self._try_one(replica, scope, body, reply)
                return
            except RefusedError as problem:
                refused = problem
            except _LostError:
                self._table.mark_lost(replica)
                if reply.has_tokens:
                    await reply.fail(scope["path"], _cut())
                    return
            failed.append(replica.name)
        if refused is not None and not reply.has_begun:
            await reply.whole(refused.status, refused.headers, refused.body)
        elif reply.has_begun:
            await reply.fail(scope["path"], _nobody())
        else:
            raise _nobody()

    async def _try_one(self, replica: Replica, scope: Scope, body: bytes, reply: Reply) -> None:
        exchange = asyncio.ensure_future(self._exchange(replica, scope, body, reply))
        replica.exchanges.add(exchange)
        try:
            await asyncio.wait((exchange,))
            if exchange.cancelled():
                raise _LostError  # by the table, which knows that the replica is gone
            exchange.result()
        finally:
            replica.exchanges.discard(exchange)
            exchange.cancel()
            await asyncio.gather(exchange, return_exceptions=True)

    async def _exchange(self, replica: Replica, scope: Scope, body: bytes, reply: Reply) -> None:
        """One request to one replica.

        Raises:
            _LostError, RefusedError: see there.
        """
        import aiohttp
        from yarl import URL

        if self._session is None:
            # No bound on the time of an answer and the number of connections: replicas have both.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
            )
        path = scope.get("raw_path") or scope["path"].encode()
        query = scope.get("query_string", b"")
        url = replica.url + path.decode("latin-1").partition("?")[0]
        url += f"?{query.decode('latin-1')}" if query else ""
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.decode("latin-1") not in _OF_THE_CONNECTION
        ]
        try:
            async with self._session.request(
                scope["method"],
                URL(url, encoded=True),
                data=body or None,
                headers=headers,
                allow_redirects=False,
            ) as response:
                await _pass_on(response, reply)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as problem:
            raise _LostError from problem


async def _pass_on(response: "aiohttp.ClientResponse", reply: Reply) -> None:
    headers = [
        (name.lower(), value)
        for name, value in response.raw_headers
        if name.decode("latin-1").lower() not in _OF_THE_CONNECTION
    ]
    if response.content_type == "text/event-stream" and response.status == 200:
        await reply.stream(headers, response.content.iter_any())
        return
    content = await response.read()  # a whole answer that is cut has not been sent
    if response.status in _TRY_ANOTHER:
        raise RefusedError(response.status, headers, content)
    if reply.has_begun:  # its stream has begun at another replica, with comments only
        await reply.end(b"data: " + content.replace(b"\n", b" ") + b"\n\n")
    else:
        await reply.whole(response.status, headers, content)


def _cut() -> RequestError:
    return RequestError(503, "The replica that wrote this answer is lost: ask again.")


def _nobody() -> RequestError:
    return RequestError(
        503, "No replica answers at the moment: ask again.", headers={"retry-after": "5"}
    )
