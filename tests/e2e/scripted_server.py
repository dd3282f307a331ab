"""A server with OpenAI's routes that answers by what the last message says."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Delta = dict[str, Any]
_CALL = {"index": 0, "id": "call_7", "function": {"name": "look", "arguments": '{"at": "北'}}


def _write(body: dict[str, Any], url: str) -> Iterator[Delta]:
    """The pieces of an answer; those of "long" and "silent" have no end."""
    text = body["messages"][-1]["content"]
    if text == "think":
        yield {"reasoning_content": "six times "}
        yield {"reasoning_content": "seven"}
        yield {"content": "\n42"}
    elif text == "call" and body.get("tools"):
        yield {"tool_calls": [_CALL]}
        yield {"tool_calls": [{"index": 0, "function": {"arguments": '京"}'}}]}
    elif text == "long":
        while True:
            yield {"content": "word "}
    elif text == "silent":
        while True:
            yield {}
    elif text == "markup":
        yield {"content": f"List<String> **bold** `a<b` ![x]({url}/secret.png) <hr>"}
    else:
        yield {"content": f"you said {text}"}


class ScriptedServer(ThreadingHTTPServer):
    """Keeps what it was asked.

    bodies: of requests for answers; `paths` of all others.
    num_closed: answers whose reader has gone before their end.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.num_closed = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def end(self) -> None:
        """Refuse all connections from now on."""
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        content = json.dumps({"data": [{"id": "one"}, {"id": "two"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for delta in _write(body, self.server.url):
                self._event({"choices": [{"delta": delta}]})
                time.sleep(0.05)
            self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": {"completion_tokens": 3}})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            self.server.num_closed += 1

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """One that listens."""
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.end()
        thread.join()
