"""What the chat command says before it loads a model, and how its screens write."""

import builtins
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving import cli
from mindformers_glm.serving.chat.files import read_tools
from mindformers_glm.serving.chat.screen import PlainScreen, TerminalScreen
from mindformers_glm.tokenizer.tool_call import ToolCall


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["http://127.0.0.1:9", "--quantization", "w8a16"], "is for a model in this process"),
        (["http://127.0.0.1:9", "--max_new_tokens", "4"], "does not answer"),
        (["http://127.0.0.1:9", "--max_length", "4"], "--max_new_tokens"),
        (["--model", "glm"], "belongs to a URL"),
        (["--tools", "missing.json"], "cannot be read"),
        (["--predict_data", "hello"], "not of chat"),
        (["--temperature", "-1"], "temperature"),
        (["no/such/folder"], "no/such/folder"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(cli, "on_interrupt", lambda handler: None)
    monkeypatch.setattr("mindformers_glm.serving.chat.command.on_interrupt", lambda handler: None)
    assert cli.main(["chat", *argv]) in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert words in errors[0]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError("no", name="rich")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"rich .* pip install 'mindformers_glm\[chat\]'"):
        TerminalScreen.open()


def test_on_a_terminal_thoughts_are_dim_and_nothing_steers_it() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system="standard", highlight=False)
    screen = TerminalScreen(input, console)
    for piece in ("hm", "m"):
        screen.show_thought(piece)
    screen.show_text("")
    screen.show_text("[bold]\x1b[2J")
    screen.end_answer()
    assert written.getvalue() == "\x1b[2mhm\x1b[0m\x1b[2mm\x1b[0m\n[bold]\\x1b[2J\n"


def test_plain_answers_stand_alone_on_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo"))
    screen = PlainScreen()
    assert [screen.read_line(">"), screen.read_line(">")] == ["one", "two"]
    with pytest.raises(EOFError):
        screen.read_line(">")
    screen.show_thought("hmm")
    for piece in ("a", "", "b"):
        screen.show_text(piece)
        screen.show_thought("")
    screen.show_call(ToolCall("look", "{}"))
    screen.end_answer()
    assert tuple(capsys.readouterr()) == ("ab\nlook {}\n", "hmm\n")


@pytest.mark.parametrize("text", ["", "{}", '["look"]', '[{"function": {}}]', "[" * 100_000])
def test_a_file_that_holds_no_tools_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="tools file"):
        read_tools(str(path))
