"""A server that streams what bench_serving.py asks for, at known times, and fails as told.

As a program it takes the options of llama.cpp's server; the model "broken" ends it.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    first_s, between_s, behavior = 0.0, 0.0, "good"
    bodies: list[dict[str, Any]]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, "application/json", b'{"data": [{"id": "m"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append(body | {"key": self.headers.get("authorization")})
        if self.behavior == "busy":
            self._send(429, "application/json", b'{"error": {"message": "full"}}')
            return
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        count = body["max_tokens"] - (self.behavior == "short")
        time.sleep(self.first_s)
        for place in range(count):
            time.sleep(self.between_s if place else 0)
            self._event({"choices": [{"text": "a"}], "usage": None})
            if self.behavior == "error" and place == 1:
                self._event({"error": {"message": "lost"}})
        if self.behavior != "no usage":
            self._event({"choices": [], "usage": {"completion_tokens": count}})
        self._chunk(b": a comment\n\n")
        if self.behavior != "cut":
            self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


@contextmanager
def fake_server(**settings: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its URL, and the bodies that it was sent."""
    bodies: list[dict[str, Any]] = []
    handler = type("Handler", (_Handler,), {"bodies": bodies, **settings})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client gives up
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Serve under the given port until a signal ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-m")
    parser.add_argument("--port", type=int)
    arguments, _ = parser.parse_known_args()
    if arguments.m == "broken":
        sys.exit("the model is broken")
    handler = type("Handler", (_Handler,), {"bodies": [], "between_s": 0.01})
    ThreadingHTTPServer(("127.0.0.1", arguments.port), handler).serve_forever(0.01)


if __name__ == "__main__":
    main()
