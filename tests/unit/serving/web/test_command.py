"""What `webui` and web_demo.py say before they show a page, and whom the page lets in."""

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.serving import cli
from mindformers_glm.serving.chat import server as chat_server
from mindformers_glm.serving.chat.model import Piece
from mindformers_glm.serving.web import command as web
from mindformers_glm.serving.web.conversation import Conversation
from mindformers_glm.serving.web.guide import main
from mindformers_glm.serving.web.words import ENGLISH, WORDS
from tests.e2e.scripted_server import scripted_server

_DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _signals_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "on_interrupt", lambda handler: None)
    monkeypatch.setattr(web, "on_interrupt", lambda handler: None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--api_base_url", _DEAD, "--port", "0"], "does not answer"),
        (["--api_base_url", "127.0.0.1:9"], "must begin with http"),
        (["--api_base_url", _DEAD, "folder"], "give the URL or the folder"),
        (["--api_base_url", _DEAD, "--quantization", "w8a16"], "is for a model in this process"),
        (["--api_base_url", _DEAD, "--tp_size", "2"], "is for a model in DIR"),
        (["--api_base_url", _DEAD, "--max_length", "4"], "--max_new_tokens"),
        ([_DEAD], "give it as --api_base_url"),
        (["--model", "glm"], "belongs to --api_base_url"),
        (["--port", "x"], "--port must be a whole number of at least 0, got 'x'"),
        (["--port", "99999999"], "port must be a number from 0 to 65535"),
        (["--port", "0", "--tp_size", "0"], "--tp_size must be a whole number of at least 1"),
        (["--host", "no.such.host.invalid"], "Cannot listen on no.such.host.invalid"),
        (["--tools", "missing.json"], "cannot be read"),
        (["--predict_data", "hello"], "not of webui"),
        (["--temperature", "-1"], "temperature"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    assert cli.main(["webui", *argv]) in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert words in errors[0]


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["webui"]) == 1
    assert "webui needs gradio, fastapi" in capsys.readouterr().err


def test_the_pages_own_server_gets_the_settings_as_they_were_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    started: list[list[str]] = []

    def start(words: list[str]) -> None:
        started.append(words)
        raise ConfigError("no more")

    monkeypatch.setattr(web, "OwnServer", start)
    words = ["--temperature=0.5", "--stop", "a", "b", "--options", "seed=7"]
    argv = ["--model_path", str(tmp_path), "--tp_size", "2", "--port", "0"]
    assert main([*argv, *words], tmp_path) == 1
    assert started == [
        [
            *(f"--pretrained_model_dir={tmp_path}", "--temperature=0.5", "--stop", "a", "b"),
            *("--options", "seed=7", "--tensor_parallel_size", "2"),
        ]
    ]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("POST", "/gradio_api/queue/join", {"content-length": "9"}, 200),
        ("POST", "/gradio_api/queue/join", {"content-length": str(2**30)}, 413),
        ("POST", "/gradio_api/queue/join", {}, 413),
        (
            "POST",
            "/gradio_api/queue/join",
            {"content-length": "9", "sec-fetch-site": "cross-site"},
            403,
        ),
        ("POST", "/gradio_api/upload", {"content-length": "9"}, 404),
        ("POST", "/gradio_api/run/answer", {"content-length": "9"}, 404),
        ("GET", "/gradio_api/file=/etc/passwd", {}, 404),
        ("GET", "/gradio_api/proxy=https://example.org", {}, 404),
        ("DELETE", "/", {}, 404),
    ],
)
def test_only_what_the_page_asks_for_comes_in(
    method: str, path: str, headers: dict[str, str], status: int
) -> None:
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    from mindformers_glm.serving.web.app import Door

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": encoded}
    asyncio.run(Door(page)(scope, None, send))
    assert sent[0]["status"] == status
    if status == 200:
        assert b"content-security-policy" in dict(sent[0]["headers"])


def test_a_server_that_hangs_leaves_room_for_those_who_stop_its_answers() -> None:
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    from mindformers_glm.serving.web.app import create_web_app
    from mindformers_glm.serving.web.page import ChatPage, PageSettings

    page = ChatPage(PageSettings(_DEAD, "", "", {}, {}, "", ""))
    create_web_app(page)
    page.blocks.run_startup_events()
    assert page.blocks.limiter.total_tokens == page.blocks._queue.max_thread_count == 1000


def test_a_server_that_hangs_is_not_waited_for_when_it_is_asked_for_its_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_server, "_WAIT_FOR_NAMES_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(GlmError, match=r"does not answer \(timed out\)"):
            chat_server.ServerModel(url, fields={})


def test_an_answer_without_a_word_is_said_to_be_none() -> None:
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    from mindformers_glm.serving.web.answer import follow_answer

    model = chat_server.ServerModel(_DEAD, model="one", fields={})
    conversation = Conversation()
    conversation.add("hello")
    pieces = iter([Piece(num_tokens=1, finish_reason="stop")])
    *_, (_, status) = follow_answer(pieces, model, conversation, WORDS[ENGLISH])
    assert status.startswith("no answer, 1 tokens")


def test_what_was_forgotten_before_it_was_asked_for_is_not_asked_for() -> None:
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    from mindformers_glm.serving.web.page import ChatPage, PageSettings

    with scripted_server() as server:
        page = ChatPage(PageSettings(server.url, "one", "", {}, {}, "", ""))
        conversation = Conversation()
        conversation.add("hello")
        conversation.is_forgotten = True
        values = {page._conversation: conversation, page._language: ENGLISH, page._model: "one"}
        values |= dict.fromkeys([page._system, page._tools, *page._numbers], "")
        request = SimpleNamespace(session_hash="visitor")
        assert list(page._answer(values, request)) == []  # type: ignore[arg-type]
        assert server.bodies == []
    assert conversation.messages == []
