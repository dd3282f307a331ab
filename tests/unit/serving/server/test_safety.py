"""What a client may not do, and what it may not learn."""

import json
import socket
import time
from contextlib import suppress
from typing import Any

import pytest

from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.json_body import MAX_DEPTH, parse_object
from mindformers_glm.serving.server.service import Service
from tests.unit.serving.server.conftest import StartServer
from tests.unit.serving.server.served_model import ServedModel

PATH = "/v1/completions"
OK = {"prompt": "a", "max_tokens": 1}
_ROUTES = (
    *(("GET", "/metrics"), ("GET", "/version"), ("GET", "/v1/models"), ("GET", "/nowhere")),
    *(("POST", "/tokenize"), ("POST", PATH), ("GET", "/tokenizer_info"), ("OPTIONS", PATH)),
)


@pytest.fixture(scope="module")
def locked(start_server: StartServer) -> ServedModel:
    return start_server(api_keys=("sekret-1", "sekret-2"), allowed_origins=("https://page.test",))


@pytest.mark.parametrize(("method", "path"), _ROUTES)
def test_every_route_but_health_asks_for_the_key(
    locked: ServedModel, method: str, path: str
) -> None:
    for headers in ({}, {"authorization": "Bearer sekret"}, {"authorization": "sekret-1"}):
        status, found, content = locked.request(method, path, OK, headers)
        assert status == 401
        assert json.loads(content)["error"]["code"] == "invalid_api_key"
        assert found["www-authenticate"] == "Bearer"
    assert locked.request("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sekret-2"},
        {"authorization": "bearer sekret-1"},
        {"x-api-key": "sekret-1"},
    ],
)
def test_a_key_opens_all(locked: ServedModel, headers: dict[str, str]) -> None:
    assert locked.request("POST", PATH, OK, headers)[0] == 200


def test_a_page_of_another_origin_gets_no_leave(locked: ServedModel, server: ServedModel) -> None:
    asked = {"origin": "https://page.test", "access-control-request-method": "POST"}
    assert locked.request("OPTIONS", PATH, None, asked)[0] == 200
    found = locked.request("POST", PATH, OK, {"origin": "https://page.test"})[1]
    assert found["access-control-allow-origin"] == "https://page.test"
    asked["origin"] = "https://evil.test"
    assert locked.request("OPTIONS", PATH, None, asked)[0] == 400
    found = server.request("POST", PATH, OK, {"origin": "https://page.test"})[1]
    assert not any(name.startswith("access-control") for name in found)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_of_another_type_is_refused(server: ServedModel, kind: str) -> None:
    status, _, content = server.request("POST", PATH, OK, {"content-type": kind})
    assert status == 415
    assert "application/json" in json.loads(content)["error"]["message"]


def test_a_body_that_is_too_large_is_refused(server: ServedModel) -> None:
    body = json.dumps({"prompt": "a" * 2**20}).encode()
    status, found, content = server.request("POST", PATH, body)
    assert (status, found["connection"]) == (413, "close")
    assert "1048576 bytes" in json.loads(content)["error"]["message"]


def test_a_body_without_a_length_is_refused_when_it_is_too_large(server: ServedModel) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        "transfer-encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(head.encode())
        for _ in range(100):
            client.sendall(b"4000\r\n" + b"a" * 0x4000 + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        assert b" 413 " in client.recv(1000)


def test_a_body_without_an_end_is_cut(server: ServedModel) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(f"{head}content-length: 1000000000000\r\n\r\n".encode())
        num_bytes = 0
        with suppress(OSError):
            while num_bytes < 2**28:
                num_bytes += client.send(b"a" * 2**16)
        assert num_bytes < 2**26


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[1]", "must be a JSON object"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested more than"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_broken_json_is_told_in_a_sentence(server: ServedModel, body: bytes, part: str) -> None:
    status, _, content = server.request("POST", PATH, body)
    assert status == 400
    assert part in json.loads(content)["error"]["message"]


def test_brackets_in_texts_do_not_count_as_depth() -> None:
    text = '\\"' + "[" * 1000
    assert parse_object(json.dumps({"a": text}).encode()) == {"a": text}
    deep: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert parse_object(json.dumps({"a": deep}).encode()) == {"a": deep}
    with pytest.raises(RequestError, match="nested"):
        parse_object(json.dumps({"a": [deep]}).encode())


def test_a_large_body_is_measured_fast() -> None:
    begin_s = time.thread_time()
    bodies = (
        *(b"[" * 2**23, b'"' + b"\\" * 2**23, b'{"a": [' + b"[]," * 2**21),
        b'{"a": "' + b'\\"' * 2**17,  # each of its quotes may be where a string begins
    )
    for body in bodies:
        with pytest.raises(RequestError):
            parse_object(body)
    assert time.thread_time() - begin_s < 15


def test_thousands_of_unknown_fields_are_not_compared(server: ServedModel) -> None:
    begin_s = time.monotonic()
    status, message = server.refusal(PATH, **OK, **{f"unknown_{i}": 1 for i in range(30000)})
    assert (status, "30000 fields" in message) == (400, True)
    assert time.monotonic() - begin_s < 5


def test_nothing_of_a_request_breaks_a_log_line(
    server: ServedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    server.request("GET", "/a%0d%0ainjected%1b[2Jline%22", None, {"x-request-id": 'x" 200'})
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /\xe5\xe5 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        client.recv(1000)
    server.request("POST", PATH, OK | {"prompt": "a private text"}, {"x-request-id": "mine-1"})
    lines = capfd.readouterr().err.splitlines()
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert not any(line.startswith("injected") for line in lines)
    (line,) = [line for line in lines if "mine-1" in line]
    assert '"POST /v1/completions" 200' in line
    assert line.endswith("prompt=14 new=1 id=mine-1")
    assert not any("private" in line for line in lines)


def test_a_sentence_does_not_name_the_folder(server: ServedModel) -> None:
    asked = {
        "messages": [{"role": "user", "content": "a"}],
        "chat_template_kwargs": {"nothing_like_it": True},
    }
    status, _, content = server.request("POST", "/v1/chat/completions", asked)
    message = json.loads(content)["error"]["message"]
    assert status == 400
    assert "The chat template of mini does not read nothing_like_it" in message
    assert "/" not in message


def test_a_defect_gives_no_traceback_away(
    server: ServedModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(service: Service, fields: Any) -> str:
        raise KeyError("/secret/path")

    monkeypatch.setattr(Service, "read_model", fail)
    status, message = server.refusal(PATH, **OK)
    assert (status, message) == (500, "The server has a defect: see its log.")
    told = capfd.readouterr().err
    assert "KeyError" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\na: \x1b[31m\r\n\r\n"]
)
def test_what_is_no_http_is_told_in_form(server: ServedModel, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(sent)
        head, _, content = client.recv(4096).partition(b"\r\n\r\n")
        assert b" 400 " in head
        assert json.loads(content)["error"]["type"] == "invalid_request_error"


def test_a_head_that_is_too_long_is_refused(server: ServedModel) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        found = b"nothing"
        try:
            for number in range(100):
                client.sendall(b"a%d: " % number + b"b" * 2000 + b"\r\n")
            client.sendall(b"\r\n")
            found = client.recv(1000)
        except OSError:
            found = b""
        assert b" 200 " not in found


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), (PATH, 405)])
def test_routes_that_are_not_there_are_told_in_form(
    server: ServedModel, path: str, status: int
) -> None:
    found, _, content = server.request("GET", path)
    assert found == status
    assert json.loads(content)["error"]["message"]


def test_there_are_no_pages_of_documentation(server: ServedModel) -> None:
    assert server.request("GET", "/docs")[0] == server.request("GET", "/openapi.json")[0] == 404
