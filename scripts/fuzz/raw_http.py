"""A client of bytes: sends what it likes, reads as slowly as it likes, and leaves when it likes."""

import asyncio
import json
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 300.0
_PIECE = 65536


@dataclass(frozen=True)
class Answer:
    """What came back; `status` 0: nothing, or no HTTP.

    is_whole: the body came to its end.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool

    @property
    def error(self) -> str:
        """The sentence of an error in OpenAI's form; empty: it has none."""
        try:
            error = json.loads(self.body)["error"]
            return str(error["message"]) if error["type"] else ""
        except (ValueError, KeyError, TypeError):
            return ""


@dataclass(frozen=True)
class Habit:
    """How a client reads.

    pause_s: before each piece of `piece` bytes.
    leave_after: bytes of the answer after which it closes the connection; None: never.
    is_rude: it closes by a reset.
    """

    pause_s: float = 0.0
    piece: int = _PIECE
    leave_after: int | None = None
    is_rude: bool = False


EAGER = Habit()


def write_post(path: str, body: bytes, *, length: int | None = None, kind: str = "") -> bytes:
    """The bytes of a request; `length`: what its head says of the body."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n"
        f"content-type: {kind or 'application/json'}\r\n"
        f"content-length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


async def exchange(port: int, sent: bytes, habit: Habit = EAGER, copies: int = 1) -> Answer:
    """Send bytes, `copies` times, and read what comes back.

    Raises:
        OSError: there is no connection.
        asyncio.TimeoutError: nothing came for `PATIENCE_S`.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=habit.piece)
    try:
        if habit.leave_after is not None or habit.pause_s:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sending = asyncio.ensure_future(_send(writer, sent, copies))
        try:
            received = await _read(reader, habit)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if habit.is_rude:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return _parse(received)


async def ask(port: int, path: str, body: dict[str, Any], habit: Habit = EAGER) -> Answer:
    """Post JSON."""
    return await exchange(port, write_post(path, json.dumps(body).encode()), habit)


async def get(port: int, path: str) -> Answer:
    """Read a page."""
    head = f"GET {path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n"
    return await exchange(port, head.encode())


async def _send(writer: asyncio.StreamWriter, sent: bytes, copies: int) -> None:
    with suppress(OSError):  # the server has heard enough
        for _ in range(copies):
            writer.write(sent)
            await writer.drain()


async def _read(reader: asyncio.StreamReader, habit: Habit) -> bytes:
    pieces: list[bytes] = []
    num_bytes = 0
    with suppress(ConnectionError):  # a reset counts as the end of what came
        while habit.leave_after is None or num_bytes < habit.leave_after:
            if habit.pause_s:
                await asyncio.sleep(habit.pause_s)
            piece = await asyncio.wait_for(reader.read(habit.piece), PATIENCE_S)
            if not piece:
                break
            num_bytes += len(piece)
            pieces.append(piece)
    return b"".join(pieces)


def _parse(received: bytes) -> Answer:
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) < 2 or not words[1].isdecimal():
        return Answer(0, {}, b"", False)
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body, is_whole = _join_chunks(rest)
    else:
        body, is_whole = rest, len(rest) == int(headers.get("content-length", len(rest)))
    return Answer(int(words[1]), headers, body, is_whole)


def _join_chunks(rest: bytes) -> tuple[bytes, bool]:
    pieces: list[bytes] = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            return b"".join(pieces), rest.startswith(b"\r\n")
        pieces.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(pieces), False
