"""What rank 0 tells the other ranks of a job between two steps, over a connection to each.

MindSpore's collectives would do for it, but a rank that waits in one gives up after MS_NODE_TIMEOUT
seconds, and notices late that another one has died. A rank that waits here sleeps, and both sides
are told at once when the other's process ends.
"""

import hmac
import json
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from mindformers_glm.core.errors import RankError
from mindformers_glm.core.process_group import ProcessGroup

Message = dict[str, Any]
_LENGTH = struct.Struct("!Q")
_GREETING = struct.Struct("!16sI")  # the job's secret and the rank
_MEET_S = 60.0
_GREETING_S = 5.0  # for a connection to say whose it is
# After a host's power is gone, nobody closes its connections.
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class Leader:
    """Rank 0's side: the same messages to all others.

    Args:
        group: all ranks, each of which makes its side now.
        peer: an address by which the other ranks can be reached; this host's own one that leads
            there is what it listens on.
    Raises:
        RankError: the others do not connect.
    """

    def __init__(self, group: ProcessGroup, peer: str) -> None:
        self._connections: dict[int, socket.socket] = {}
        self._is_over = False
        secret = secrets.token_bytes(16)
        address = _own_address(peer)
        with socket.create_server((address, 0)) as listener:
            (place,) = struct.unpack("!I", socket.inet_aton(address))
            group.gather([place, listener.getsockname()[1], *struct.unpack("!qq", secret)])
            self._accept(listener, secret, group.size)

    def watch(self, on_loss: Callable[[RankError], None]) -> None:
        """Call `on_loss`, once and in a thread, where a rank ends before `end`."""
        threading.Thread(target=self._watch, args=(on_loss,), name="ranks", daemon=True).start()

    def send(self, message: Message) -> None:
        """Send a message to every rank.

        Raises:
            RankError: one is gone.
        """
        content = json.dumps(message, separators=(",", ":")).encode()
        content = _LENGTH.pack(len(content)) + content
        for rank, connection in self._connections.items():
            try:
                connection.sendall(content)
            except OSError:
                raise _lost(rank) from None

    def end(self) -> None:
        """Let the other ranks end in order: no message follows."""
        self._is_over = True
        for connection in self._connections.values():
            with suppress(OSError):
                connection.sendall(_LENGTH.pack(0))

    def _accept(self, listener: socket.socket, secret: bytes, size: int) -> None:
        end_s = time.monotonic() + _MEET_S
        while len(self._connections) < size - 1:
            listener.settimeout(max(end_s - time.monotonic(), 0.001))
            try:
                connection, _ = listener.accept()
            except OSError:
                missing = set(range(1, size)) - set(self._connections)
                raise RankError(
                    f"Rank {min(missing)} did not connect to rank 0 within {_MEET_S:g} s: its log "
                    "may say why; hosts must reach each other on all ports."
                ) from None
            rank = _read_greeting(connection, secret)
            if rank is None or rank in self._connections or not 0 < rank < size:
                connection.close()  # somebody else
                continue
            _prepare(connection)
            self._connections[rank] = connection

    def _watch(self, on_loss: Callable[[RankError], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            # They say nothing: what can be read is the end.
            ended, _ = selector.select()[0]
        if not self._is_over:
            on_loss(_lost(ended.data))


class Follower:
    """Another rank's side: what rank 0 says, in its order.

    Args:
        group: all ranks, each of which makes its side now.
        on_loss: called in a thread where rank 0 ends without a last word.
    Raises:
        RankError: rank 0 cannot be reached.
    """

    def __init__(self, group: ProcessGroup, on_loss: Callable[[RankError], None]) -> None:
        self._on_loss = on_loss
        self._inbox: SimpleQueue[Message | None] = SimpleQueue()
        place, port, *secret = group.gather([0, 0, 0, 0])[0]
        address = socket.inet_ntoa(struct.pack("!I", place))
        try:
            self._connection = socket.create_connection((address, port), timeout=_MEET_S)
            self._connection.settimeout(None)
            greeting = _GREETING.pack(struct.pack("!qq", *secret), group.rank)
            self._connection.sendall(greeting)
        except OSError as problem:
            raise RankError(
                f"Rank {group.rank} cannot reach rank 0 at {address}:{port} ({problem.strerror}): "
                "hosts must reach each other on all ports."
            ) from None
        _prepare(self._connection)
        threading.Thread(target=self._read_all, name="rank 0", daemon=True).start()

    def receive(self) -> Message | None:
        """Wait for the next message; None: there will be no other."""
        return self._inbox.get()

    def _read_all(self) -> None:
        with suppress(OSError, EOFError):
            while length := _LENGTH.unpack(_read(self._connection, _LENGTH.size))[0]:
                self._inbox.put(json.loads(_read(self._connection, length)))
            self._inbox.put(None)
            return
        self._on_loss(_lost(0))


def _own_address(peer: str) -> str:
    """The address of this host that packets to another one come from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))  # nothing is sent
        except OSError as problem:
            raise RankError(f"The address {peer} leads nowhere: {problem.strerror}.") from None
        return str(probe.getsockname()[0])


def _read_greeting(connection: socket.socket, secret: bytes) -> int | None:
    """The rank whose connection this is; None: it is of no rank of this job."""
    connection.settimeout(_GREETING_S)
    try:
        given, rank = _GREETING.unpack(_read(connection, _GREETING.size))
        connection.settimeout(None)
    except (OSError, EOFError):
        return None
    return int(rank) if hmac.compare_digest(given, secret) else None


def _prepare(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _read(connection: socket.socket, length: int) -> bytes:
    """Read so many bytes.

    Raises:
        EOFError: they do not come any more.
    """
    pieces = bytearray()
    while len(pieces) < length:
        piece = connection.recv(min(length - len(pieces), 1 << 20))
        if not piece:
            raise EOFError
        pieces += piece
    return bytes(pieces)


def _lost(rank: int) -> RankError:
    return RankError(f"Rank {rank} of this job has ended: its log may say why.")
