"""The web page in a headless Chromium, on a server whose answers are known."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MINI
from tests.e2e.run_process import REPO
from tests.e2e.scripted_server import ScriptedServer, scripted_server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytest.importorskip("gradio", reason="the extra `web` is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian: chromium)")

_LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
_WAIT_MS = 60_000  # a busy machine is slow: a page took 20 s to open


class WebUi:
    """`mindformers-glm webui` as a process; `url` is where its page is."""

    def __init__(self, *words: str, folder: Path, program: tuple[str, ...] = ()) -> None:
        program = program or ("-m", "mindformers_glm", "webui")
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *program, "--port", "0", *words],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            if match := re.search(r"a chat with .+ is at (http://\S+);", line):
                self.url = match[1]
                return
        raise AssertionError("".join(self._lines))

    def end(self) -> str:
        """End it as a service is ended; returns what it has told."""
        self.process.send_signal(signal.SIGTERM)
        rest = self.process.communicate(timeout=60)[1]
        assert self.process.returncode == 0
        return "".join([*self._lines, rest])


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture(scope="module")
def webui(server: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUi]:
    started = WebUi("--api_base_url", server.url, folder=tmp_path_factory.mktemp("web"))
    yield started
    assert "Traceback" not in started.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, webui: WebUi) -> Iterator[Callable[..., "Visitor"]]:
    with ExitStack() as stack:

        def visit(
            url: str = webui.url, locale: str = "en-US", size: tuple[int, int] = (1100, 800)
        ) -> Visitor:
            viewport = dict(zip(("width", "height"), size, strict=True))
            context = browser.new_context(locale=locale, viewport=viewport)
            stack.callback(context.close)
            return Visitor(context.new_page(), url)

        yield visit


class Visitor:
    """Somebody who looks at the page."""

    def __init__(self, page: Any, url: str) -> None:
        page.set_default_timeout(_WAIT_MS)
        sync_api.expect.set_options(timeout=_WAIT_MS)
        self.page, self.requests = page, []
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        self.chat, self.status = page.locator("#chat"), page.locator("#status")
        self.box = page.locator("#box textarea")
        # The server's models are asked for behind all the rest.
        sync_api.expect(page.locator("#model input")).not_to_have_value("")

    def fill(self, name: str, text: str) -> None:
        self.page.locator(f"#{name} textarea, #{name} input").fill(text)

    def say(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def sees(self, text: "str | re.Pattern[str]", *, status: str = "") -> None:
        """Waits until the conversation, and the line below, hold a text."""
        sync_api.expect(self.chat).to_contain_text(text)
        if status:
            sync_api.expect(self.status).to_contain_text(status)

    def ask(self, text: str, answer: str) -> None:
        self.say(text)
        self.sees(answer, status="3 tokens")


def test_answers_come_and_the_second_turn_knows_the_first(
    visit: Callable[..., Visitor], server: ScriptedServer
) -> None:
    visitor = visit()
    for name, text in (("system", "be brief"), ("temperature", "0.5"), ("seed", "7")):
        visitor.fill(name, text)
    visitor.ask("hello", "you said hello")
    visitor.ask("and now", "you said and now")
    body = server.bodies[-1]
    assert [message["role"] for message in body["messages"]] == [
        *("system", "user", "assistant", "user")
    ]
    assert body["messages"][2]["content"] == "you said hello"
    assert (body["temperature"], body["seed"], body["model"]) == (0.5, 7, "one")
    assert not {"top_p", "max_tokens", "tools"} & set(body)
    visitor.page.locator("#clear").click()
    sync_api.expect(visitor.chat).not_to_contain_text("you said")
    visitor.ask("third", "you said third")
    assert [message["role"] for message in server.bodies[-1]["messages"]] == ["system", "user"]


def test_what_is_no_number_is_said_and_the_question_stays(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.fill("temperature", "warm")
    visitor.say("hello")
    visitor.sees("", status="Error: Temperature must be a number or empty, it is 'warm'.")
    sync_api.expect(visitor.box).to_have_value("hello")


def test_an_answer_is_seen_while_it_comes_and_stopping_it_closes_the_connection(
    visit: Callable[..., Visitor], server: ScriptedServer
) -> None:
    visitor, num_closed = visit(), server.num_closed
    visitor.say("long")
    visitor.sees("word word word")
    visitor.say("too early")
    time.sleep(0.3)
    sync_api.expect(visitor.box).to_have_value("too early")
    visitor.page.locator("#box .stop-button").click()
    visitor.sees("word word", status="stopped, ")
    _wait_for(lambda: server.num_closed == num_closed + 1)
    visitor.ask("hello", "you said hello")
    messages = server.bodies[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"].startswith("word word")


def test_leaving_the_page_closes_the_connection(
    visit: Callable[..., Visitor], server: ScriptedServer
) -> None:
    visitor, num_closed = visit(), server.num_closed
    visitor.say("long")
    visitor.sees("word word")
    visitor.page.close()
    _wait_for(lambda: server.num_closed == num_closed + 1)


@pytest.mark.parametrize("button", ["#clear", "#chat button[title=Clear]"])
def test_a_conversation_that_is_forgotten_while_an_answer_is_awaited_stays_so(
    visit: Callable[..., Visitor], server: ScriptedServer, button: str
) -> None:
    visitor, num_closed = visit(), server.num_closed
    visitor.ask("hello", "you said hello")
    visitor.say("silent")
    visitor.sees("silent", status="Waiting for the answer ...")
    # The page says so before it asks; what is forgotten before that is never asked for.
    _wait_for(lambda: server.bodies[-1]["messages"][-1]["content"] == "silent")
    visitor.page.locator(button).click()
    _wait_for(lambda: server.num_closed == num_closed + 1)
    visitor.ask("again", "you said again")
    sync_api.expect(visitor.chat).not_to_contain_text("hello")
    assert [message["content"] for message in server.bodies[-1]["messages"]] == ["again"]


def test_a_narrow_window_shows_the_chat_and_its_settings_when_asked(
    visit: Callable[..., Visitor],
) -> None:
    visitor = visit(size=(400, 800))
    visitor.box.click()  # cannot be done to what something covers
    visitor.ask("hello", "you said hello")
    visitor.page.locator(".sidebar .toggle-button").click()
    visitor.page.locator("#seed textarea").click()


def test_thoughts_are_folded_when_the_answer_is_there(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.ask("think", "42")
    thought = visitor.page.get_by_text("six times seven")
    sync_api.expect(thought).to_be_hidden()
    visitor.page.get_by_text("Thoughts").click()
    sync_api.expect(thought).to_be_visible()


def test_calls_are_shown_and_their_results_are_asked_for(
    visit: Callable[..., Visitor], server: ScriptedServer
) -> None:
    visitor = visit()
    visitor.fill("tools", "[{")
    visitor.say("call")
    visitor.sees("", status="Error: The field of tools cannot be read")
    visitor.fill("tools", f"[{_LOOK}]".replace("'", '"'))
    visitor.say("call")
    visitor.sees("Calls look")
    visitor.sees('"at": "北京"')
    sync_api.expect(visitor.box).to_have_attribute(
        "placeholder", "Type what look returns; Enter sends it"
    )
    visitor.ask("blue", "you said blue")
    messages = server.bodies[-1]["messages"]
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == '{"at": "北京"}'
    assert messages[2] == {"role": "tool", "content": "blue", "tool_call_id": "call_7"}


def test_the_page_speaks_the_browsers_language_and_another_one_when_told(
    visit: Callable[..., Visitor],
) -> None:
    visitor = visit(locale="zh-CN")
    button = visitor.page.locator("#clear")
    sync_api.expect(button).to_have_text("新对话")
    visitor.say("think")
    visitor.sees("42", status="3 个 token")
    visitor.sees("思考过程")
    visitor.page.get_by_text("English").click()
    sync_api.expect(button).to_have_text("New chat")
    visitor.sees("Thoughts")
    visitor.sees("42")


def test_nothing_is_loaded_from_elsewhere_and_markup_is_shown_not_obeyed(
    visit: Callable[..., Visitor], webui: WebUi, server: ScriptedServer
) -> None:
    visitor = visit()
    visitor.ask("markup", "List<String> bold")
    sync_api.expect(visitor.chat).to_contain_text("a<b")
    sync_api.expect(visitor.chat).to_contain_text("<hr>")
    sync_api.expect(visitor.page.locator("#chat img")).to_have_count(1)
    # A browser tells of the picture's request, and does not send it.
    assert "/secret.png" not in server.paths
    others = {url for url in visitor.requests if not url.startswith((webui.url, "data:", "blob:"))}
    assert others == {f"{server.url}/secret.png"}


def test_a_server_that_is_gone_is_a_sentence(
    visit: Callable[..., Visitor], server: ScriptedServer
) -> None:
    """The last of those that share the server."""
    visitor = visit()
    visitor.ask("hello", "you said hello")
    server.end()
    visitor.say("more")
    visitor.sees("you said hello", status=f"Error: {server.url} does not answer (")
    sync_api.expect(visitor.status).to_contain_text("check the URL and whether the server runs.")
    sync_api.expect(visitor.box).to_have_value("more")
    sync_api.expect(visitor.chat).not_to_contain_text("more")


@pytest.mark.weights
@pytest.mark.skipif(not MINI.is_dir(), reason="the shipped checkpoint is not there")
def test_web_demo_starts_a_server_of_its_own_and_ends_it(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    program = (str(REPO / "web_demo.py"), "--model_path", str(MINI), "--tp_size", "1")
    webui = WebUi("--max_new_tokens", "64", program=program, folder=tmp_path)
    visitor = visit(webui.url)
    sync_api.expect(visitor.page.locator("#max_tokens textarea")).to_have_value("64")
    visitor.say("请介绍一下北京")
    visitor.sees("北京是中国的首都", status="tokens/s")
    (child,) = _children(webui.process.pid)
    assert "Traceback" not in webui.end()
    assert not Path(f"/proc/{child}").exists()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _wait_for(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + _WAIT_MS / 1000
    while not is_true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
