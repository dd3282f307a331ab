"""The web page as an HTTP server: nothing from elsewhere is loaded, nothing is told elsewhere."""

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindformers_glm.serving.web.page import ChatPage

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MAX_BODY = 8 * 2**20
# Under way at once, those that stop an answer among them: by gradio's own 40, a server that hangs
# would leave no place for these. Each is a thread, which waits.
_MAX_EVENTS = 1000
# What the page itself asks for; gradio has more, such as taking files and calling by programs.
_POSTED = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
_CLOSED = ("/gradio_api/file", "/gradio_api/proxy", "/gradio_api/upload", "/monitoring")
# Scripts of gradio stand in its page and are made of texts; the rest is: only from here, so that
# an answer cannot have a picture fetched whose address tells what was said.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
_FONT = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
_FONT_MONO = ("ui-monospace", "Consolas", "monospace")
_STYLE = """
#status { min-height: 1.6em; color: var(--body-text-color-subdued); }
#status .error { color: var(--error-text-color, #b91c1c); }
"""


def create_web_app(page: ChatPage) -> ASGIApp:
    """Put the page at / of an application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A theme's own fonts come from Google.
    theme = gr.themes.Default(font=_FONT, font_mono=_FONT_MONO)
    page.blocks.max_threads = _MAX_EVENTS
    page.blocks.queue(api_open=False)  # with as many places
    gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme,
        css=_STYLE,
    )
    return Door(app)


class Door:
    """Lets through what the page needs, with headers that keep a browser to this server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if refusal := _refuse(scope):
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = _POLICY
                headers["referrer-policy"] = "no-referrer"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, send_guarded)


def _refuse(scope: Scope) -> tuple[int, str] | None:
    """Status and reason for what the page never asks for, or None."""
    path = str(scope["path"])
    if path.startswith(_CLOSED):
        return 404, "There is no such page."
    if scope["method"] in ("GET", "HEAD"):
        return None
    headers = Headers(scope=scope)
    if scope["method"] != "POST" or path.rstrip("/") not in _POSTED:
        return 404, "There is no such page."
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "Other pages may not use this one."
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length) > _MAX_BODY:
        return 413, f"A request must say its length, at most {_MAX_BODY} bytes."
    return None


class PageServer(uvicorn.Server):
    """Serves the page until a signal comes or `end` is called.

    Args:
        stop_answers: called then, so that nothing goes on being computed.
    """

    def __init__(self, app: ASGIApp, stop_answers: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, ws="none"
        )
        super().__init__(config)
        # It would tell of each connection that the end cuts.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._stop_answers = stop_answers

    def end(self) -> None:
        """Stop what is under way and end, from any thread."""
        self._stop_answers()
        # An open page holds connections for ever.
        self.should_exit = self.force_exit = True

    def run_on(self, listener: socket.socket) -> None:
        """Answer requests until the end."""
        self.run(sockets=[listener])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours in the place of uvicorn's, which raises the signals again behind the end."""
        before = {number: signal.signal(number, self._take_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number in before:
                signal.signal(number, signal.SIG_IGN)  # what is left takes no time

    def _take_signal(self, signal_number: int, frame: FrameType | None) -> Any:
        self.end()
