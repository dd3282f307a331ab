"""The server as a process: its socket, uvicorn, signals, and how it ends."""

import asyncio
import errno
import logging
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving.server.engine_link import EngineLink
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import to_json
from mindformers_glm.system.log import note, write_line

_BACKLOG = 2048
_MAX_PORT = 65535
_MAX_HEADER_BYTES = 64 * 1024
_KEPT_CONNECTION_S = 75  # between two requests
_DEAD_PAUSE_S = 1.0  # in which clients read that the engine is dead
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Who signals all processes of a service (systemd, a shell) is heard twice: also by a launcher or
# wrapper, which hands it on.
_ONE_SIGNAL_S = 1.0


@dataclass(frozen=True)
class ListenSettings:
    """Where and how the server listens, and how it ends.

    Attributes:
        ssl_certfile, ssl_keyfile: None: plain HTTP; the key may stand in the certificate's file.
        client_timeout_s: in which a client must have sent the head of its request.
        drain_timeout_s: for answers under way when the server ends.
    """

    host: str
    port: int
    ssl_certfile: str | None
    ssl_keyfile: str | None
    client_timeout_s: float
    drain_timeout_s: float


def open_socket(host: str, port: int) -> socket.socket:
    """Take the port before the long work of loading; nobody can connect yet.

    Raises:
        ConfigError: it is taken, or there is no such address.
    """
    if port > _MAX_PORT:  # getaddrinfo would take what is left of it after division
        raise ConfigError(f"port must be a number from 0 to {_MAX_PORT}, got {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as problem:
        taken = isinstance(problem, OSError) and problem.errno == errno.EADDRINUSE
        reason = "another program has it" if taken else getattr(problem, "strerror", str(problem))
        raise ConfigError(
            f"Cannot listen on {host} port {port}: {reason}. Choose others with --host and --port."
        ) from None
    return listener


def allow_many_connections() -> None:
    """Let this process have as many open sockets as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_tls(settings: ListenSettings) -> None:
    """Read the certificate and its key, before the long work.

    Raises:
        ConfigError: they cannot be used.
    """
    if settings.ssl_certfile is None:
        if settings.ssl_keyfile is not None:
            raise ConfigError("ssl_keyfile needs ssl_certfile: give both, or neither.")
        return
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(
            settings.ssl_certfile, settings.ssl_keyfile, password=_refuse_password
        )
    except ssl.SSLError as problem:
        is_other_key = problem.reason == "KEY_VALUES_MISMATCH"
        reason = "the key is not the certificate's" if is_other_key else "no PEM, or broken"
        raise _unusable(settings, reason) from None
    except (OSError, ValueError) as problem:
        raise _unusable(settings, getattr(problem, "strerror", None) or str(problem)) from None


def _unusable(settings: ListenSettings, reason: str) -> ConfigError:
    key = f" and ssl_keyfile {settings.ssl_keyfile}" if settings.ssl_keyfile else ""
    return ConfigError(f"Cannot use ssl_certfile {settings.ssl_certfile}{key}: {reason}.")


class HttpServer(uvicorn.Server):
    """uvicorn's server with our own signals: drain, then 0; a dead engine: 1.

    Args:
        app: answers the requests, by the engine that `link` leads to.
        on_ready: called when the first request can come.
    """

    def __init__(
        self,
        app: ASGIApp,
        link: EngineLink,
        settings: ListenSettings,
        on_ready: Callable[[], None],
    ) -> None:
        _silence_uvicorn()
        config = uvicorn.Config(
            app,
            http=_BoundedHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
            timeout_keep_alive=_KEPT_CONNECTION_S,
        )
        super().__init__(config)
        self._link = link
        self._settings = settings
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_s = 0.0  # when to end in order
        self.exit_code = 0

    def run_on(self, listener: socket.socket) -> int:
        """Answer requests until a signal comes or the engine dies; return the exit code."""
        self.run(sockets=[listener])
        return self.exit_code

    def ask_to_end(self) -> None:
        """What a signal does, from any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._take_signal)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end; signals only ask for it."""
        _BoundedHttpProtocol.timeout_s = self._settings.client_timeout_s
        loop = self._loop = asyncio.get_running_loop()
        self._link.attach(loop)
        self._link.on_death = self._take_death
        # Others leave the signals of a process alone.
        numbers = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
        for number in numbers:
            loop.add_signal_handler(number, self._take_signal)
        try:
            await self._serve(sockets)
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # what is left takes no time

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets=sockets)
        self._on_ready()

    def _take_signal(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._asked_s and now_s < self._asked_s + _ONE_SIGNAL_S:
            return
        if self._link.is_draining:
            note("ending at once")
            self._link.fail_all(RequestError(503, "The server ends: the answer is not finished."))
            asyncio.get_running_loop().call_later(_DEAD_PAUSE_S, self._force)
            return
        self._asked_s = now_s
        if self._link.num_open:
            note(
                f"ending after {self._link.num_open} requests under way, at most "
                f"{self._settings.drain_timeout_s:g} s; a second signal ends them"
            )
        self._end(0)
        asyncio.get_running_loop().call_later(self._settings.drain_timeout_s, self._give_up)

    def _take_death(self) -> None:
        asyncio.get_running_loop().call_later(_DEAD_PAUSE_S, self._end, 1)

    def _end(self, exit_code: int) -> None:
        self.exit_code = max(self.exit_code, exit_code)
        self._link.is_draining = True
        self.should_exit = True
        if exit_code:
            asyncio.get_running_loop().call_later(_DEAD_PAUSE_S, self._force)

    def _give_up(self) -> None:
        if self._link.num_open:
            write_line(f"error: {self._link.num_open} requests did not end in time and are cut")
        self._link.fail_all(RequestError(503, "The server ends: the answer is not finished."))
        asyncio.get_running_loop().call_later(_DEAD_PAUSE_S, self._force)

    def _force(self) -> None:
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with a time and a size within which the head of a request must come.

    The time for a body is the reader's; one that was answered unread has as long to come as a head.
    """

    timeout_s = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._num_head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._set_timer(transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # A kept connection waits for the first byte by uvicorn's own rule.
        self._set_timer(self.transport.abort)
        self._num_head_bytes = 0
        self.scope["state"]["abort"] = self.transport.abort

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._set_timer(self._end_late_body)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_timer()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of all errors; there is no route, and no request."""
        body = to_json(RequestError(400, "The request is not valid HTTP/1.1.").body(""))
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _end_late_body(self) -> None:
        """Nobody reads what still comes of a request that has its answer."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
        else:
            self._set_timer(self._end_late_body)

    def _set_timer(self, action: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.timeout_s, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count_head(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > _MAX_HEADER_BYTES:
            self.transport.abort()
            raise ValueError("the head of a request is too long")


def _silence_uvicorn() -> None:
    """Its log quotes requests and prints tracebacks; what concerns people is told by us."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _refuse_password() -> str:
    raise ValueError("the key is locked with a password, which cannot be given")
