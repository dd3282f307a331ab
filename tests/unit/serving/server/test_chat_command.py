"""The chat against a server, and on the engine in its own process; both on the fake runner."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.engine import open_model as open_model_module
from mindformers_glm.engine.led_engine import LedEngine
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.chat.model import LocalModel
from mindformers_glm.serving.chat.server import ServerModel, sampling_fields
from mindformers_glm.serving.chat.session import ChatSession
from tests.unit.serving.chat_user import User
from tests.unit.serving.server.conftest import StartServer, _ScriptedBackend
from tests.unit.serving.server.served_model import ASSISTANT, ServedModel

HELLO = {"role": "user", "content": "hello"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "d",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}


@pytest.fixture(autouse=True)
def _signal_handlers_are_put_back() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def _remote(server: ServedModel, **fields: Any) -> ServerModel:
    return ServerModel(f"http://127.0.0.1:{server.port}", fields=fields)


@pytest.fixture
def llm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.setattr(open_model_module, "select_backend", lambda target: _ScriptedBackend())
    with LLM(folder, max_model_len=4096, tool_call_parser="glm4") as llm:
        yield llm


def _local(llm: LLM, **params: Any) -> LocalModel:
    led = LedEngine(llm, lambda problem: pytest.fail("there is no other rank"))
    return LocalModel(llm, led, "mini", SamplingParams(**params))


def _free_blocks(llm: LLM) -> int:
    return llm.engine.pool.num_free


def test_the_second_turn_knows_the_first(server: ServedModel) -> None:
    server.script([HELLO], "good day")
    first = [HELLO, {"role": "assistant", "content": "good day"}]
    server.script([*first, {"role": "user", "content": "and?"}], "nothing")
    user = User(["hello", "", "and?"])
    assert ChatSession(_remote(server), user).run() == 0
    assert user.answers == ["good day", "nothing"]
    assert all("tokens" in line for line in user.told)


def test_a_model_in_the_process_says_what_generate_says(llm: LLM) -> None:
    user = User(["hello", "/clear", "hello"])
    assert ChatSession(_local(llm, max_new_tokens=9), user).run() == 0
    expected = llm.chat([HELLO], SamplingParams(max_new_tokens=9)).text.lstrip("\n")
    assert user.answers == [expected, expected]
    assert not llm.engine.has_unfinished()


def test_ctrl_c_stops_the_answer_gives_the_blocks_back_and_the_chat_goes_on(llm: LLM) -> None:
    model = _local(llm, max_new_tokens=200)
    free = _free_blocks(llm)
    user = User(["hello", "again"], is_terminal=True)
    user.on_text = lambda text: signal.raise_signal(signal.SIGINT)
    session = ChatSession(model, user)
    assert session.run() == 0
    assert len(user.answers) == 2
    assert all(len(answer) < 20 for answer in user.answers)
    assert all(line.startswith("stopped") for line in user.told)
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
    assert _free_blocks(llm) == free
    assert not llm.engine.has_unfinished()
    assert llm.generate("hello", SamplingParams(max_new_tokens=3))[0].error is None


def test_ctrl_c_while_a_prompt_is_read_leaves_no_turn(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = llm.engine.runner
    execute = runner.execute

    def interrupt(batch: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)  # what MindSpore makes of it while a graph runs
        return execute(batch)

    monkeypatch.setattr(runner, "execute", interrupt)
    user = User(["x" * 2000], is_terminal=True)
    session = ChatSession(_local(llm), user)
    assert session.run() == 0
    assert session.messages == []
    assert user.told == ["stopped"]
    assert not llm.engine.has_unfinished()


def test_ctrl_c_closes_the_connection_and_the_server_frees_the_blocks(server: ServedModel) -> None:
    user = User(["long one"], is_terminal=True)
    user.on_text = lambda text: signal.raise_signal(signal.SIGINT)
    ChatSession(_remote(server, max_tokens=3000), user).run()
    assert user.told[0].startswith("stopped")
    end = time.monotonic() + 10
    while server.link.num_open and time.monotonic() < end:
        time.sleep(0.01)
    assert server.link.num_open == 0


def test_ctrl_c_at_the_prompt_gives_the_line_up_and_without_a_terminal_ends_all(
    server: ServedModel,
) -> None:
    server.script([HELLO], "good day")
    user = User([KeyboardInterrupt, "hello"], is_terminal=True)
    assert ChatSession(_remote(server), user).run() == 0
    assert user.answers == ["good day"]
    with pytest.raises(KeyboardInterrupt):
        ChatSession(_remote(server), User([KeyboardInterrupt])).run()


@pytest.mark.parametrize("is_local", [True, False])
def test_calls_are_shown_and_the_next_line_is_the_result(
    is_local: bool, server: ServedModel, llm: LLM, tmp_path: Path
) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    user = User([f"/tools {tmp_path}/tools.json", "hello", "sunny"])
    answer = f'look\n{{"at": "home"}}{ASSISTANT}'
    served: Any = server
    if is_local:
        served = ServedModel.__new__(ServedModel)
        served.llm, served.runner = llm, llm.engine.runner
        served.runner.eos_token_id = llm.config.vocab_size - 1
    served.script([HELLO], answer.removesuffix(ASSISTANT), tools=[TOOL])
    session = ChatSession(_local(llm, max_new_tokens=40) if is_local else _remote(server), user)
    assert session.run() == 0
    assert [(call.name, json.loads(call.arguments)) for call in user.calls[:1]] == [
        ("look", {"at": "home"})
    ]
    assert user.questions[2] == "result of look:"
    assert session.messages[2]["role"] == "tool"
    assert session.messages[2]["content"] == "sunny"
    assert session.messages[2]["tool_call_id"] == session.messages[1]["tool_calls"][0]["id"]


def test_system_save_and_what_is_wrong(server: ServedModel, tmp_path: Path) -> None:
    system = {"role": "system", "content": "be brief"}
    server.script([system, HELLO], "hi")
    saved = tmp_path / "chat.json"
    (tmp_path / "other.json").write_text("kept")
    user = User(
        [
            "/system be brief",
            "hello",
            f"/save {saved}",
            f"/save {saved}",
            f"/save {tmp_path}/other.json",
            "/tools missing.json",
            "/foo",
            "/help",
            "/stop",
            "never read",
        ]
    )
    assert ChatSession(_remote(server), user).run() == 1
    assert user.answers == ["hi"]
    expected = [system, HELLO, {"role": "assistant", "content": "hi"}]
    assert json.loads(saved.read_text()) == expected
    assert (tmp_path / "other.json").read_text() == "kept"
    errors = [line for line in user.told if line.startswith("error")]
    for error, words in zip(errors, ("is there already", "cannot be read", "/help"), strict=True):
        assert words in error
    assert any("/clear" in line for line in user.told)
    assert len(user.questions) == 9


def test_a_turn_that_is_refused_is_taken_back(server: ServedModel) -> None:
    server.script([HELLO], "good day")
    user = User(["x" * 5000, "hello"])
    session = ChatSession(_remote(server), user)
    assert session.run() == 1
    assert "refuses this with status 400" in user.told[0]
    assert [message["content"] for message in session.messages] == ["hello", "good day"]


def test_a_server_that_is_none_is_a_sentence(start_server: StartServer) -> None:
    with pytest.raises(GlmError, match="does not answer"):
        ServerModel("http://127.0.0.1:9", fields={})
    for url in ("http://", "http://host:x", "http://user@host"):
        with pytest.raises(ConfigError, match="http://HOST:PORT"):
            ServerModel(url, fields={})
    server = start_server(api_keys=("secret",))
    with pytest.raises(GlmError, match=r"status 401.*--api_key_file"):
        _remote(server)
    assert ServerModel(f"http://127.0.0.1:{server.port}/v1/", api_key="secret", fields={}).name == (
        "mini"
    )


def test_sampling_settings_have_the_names_of_requests() -> None:
    given = {"max_new_tokens": 5, "do_sample": False, "top_p": None, "stop": ()}
    assert sampling_fields(given) == {"max_tokens": 5, "temperature": 0.0}
    with pytest.raises(ConfigError, match="--max_new_tokens"):
        sampling_fields({"max_length": 5})


def test_ctrl_c_just_after_an_answer_does_not_end_the_chat(
    server: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script([HELLO], "good day")
    user = User(["hello", "/clear", "hello"], is_terminal=True)

    def tell(line: str) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(user, "tell", tell)
    assert ChatSession(_remote(server), user).run() == 0
    assert user.answers == ["good day", "good day"]


def test_thoughts_are_told_from_the_answer_and_kept(start_server: StartServer) -> None:
    server = start_server(reasoning_parser="glm_z1")
    server.script([HELLO], "hm</think>good day", enable_thinking=True)
    user = User(["hello"])
    model = _remote(server, chat_template_kwargs={"enable_thinking": True})
    session = ChatSession(model, user)
    assert session.run() == 0
    assert (user.thoughts, user.answers) == ("hm", ["good day"])
    assert session.messages[1]["reasoning_content"] == "hm"


@pytest.mark.parametrize("is_at_the_start", [True, False], ids=["at the start", "in the middle"])
def test_another_thread_stops_an_answer_and_the_server_frees_the_blocks(
    server: ServedModel, *, is_at_the_start: bool
) -> None:
    server.script([HELLO], "good day " * 300)  # longer than any thread takes to stop it
    model = _remote(server, max_tokens=3000)
    pieces = []
    if is_at_the_start:
        model.stop()
    for piece in model.answer([HELLO], ()):
        pieces.append(piece)
        threading.Thread(target=model.stop).start()
    assert pieces[-1].finish_reason is None
    assert model.is_stopped
    end = time.monotonic() + 10
    while server.link.num_open and time.monotonic() < end:
        time.sleep(0.01)
    assert not server.link.num_open
