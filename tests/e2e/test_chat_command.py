"""`mindformers-glm chat` and main.py as processes: piped lines, a terminal with Ctrl-C."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import MINI
from tests.e2e.run_process import REPO

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(not MINI.is_dir(), reason="the shipped checkpoint is not there"),
]
_ENVIRON = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "TERM": "xterm"}

_READS = "\x1b[?2004h"  # what prompt_toolkit writes when it begins to read a line


def _run(lines: str, *argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *argv],
        input=lines,
        capture_output=True,
        text=True,
        timeout=120,
        env=_ENVIRON,
        check=False,
    )


@pytest.mark.parametrize(
    "argv",
    [
        ("-m", "mindformers_glm", "chat", str(MINI)),
        (str(REPO / "main.py"), *("--mode", "cli_demo", "--model_path", str(MINI)), "--tp_size=1"),
    ],
    ids=["chat", "main.py"],
)
def test_each_piped_line_is_a_turn(argv: tuple[str, ...], tmp_path: Path) -> None:
    lines = f"请介绍一下北京\n/save {tmp_path}/saved.json\n/clear\n请介绍一下北京\n"
    run = _run(lines, *argv)
    assert run.returncode == 0, run.stderr
    answers = run.stdout.splitlines()
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert answers[0].startswith("北京是中国的首都")
    assert run.stderr.count("tokens/s") == 2
    assert "北京" in (tmp_path / "saved.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--mode", "performance"), "not in this version"),
        (("--mode", "chat"), "must be cli_demo"),
        (("--mode", "cli_demo", "--tp_size", "x"), "whole number"),
    ],
)
def test_main_says_in_a_sentence_what_it_does_not_do(argv: tuple[str, ...], words: str) -> None:
    run = _run("", str(REPO / "main.py"), *argv)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert words in run.stderr


class _Terminal:
    """The other side of a terminal that a program runs on."""

    def __init__(self, *argv: str, folder: Path | None = None) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=_ENVIRON,
            cwd=folder,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.text = ""

    def wait_for(self, words: str) -> None:
        """Read until these words come, which are then gone from `text`."""
        end = time.monotonic() + 60
        while words not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self._master], [], [], 0.2)[0]:
                self.text += os.read(self._master, 65536).decode("utf-8", "replace")
                if "\x1b[6n" in self.text:  # where is the cursor?
                    self.text = self.text.replace("\x1b[6n", "")
                    self.type("\x1b[1;1R")
        self.text = self.text.partition(words)[2]

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_on_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_chat() -> None:
    terminal = _Terminal(
        *("-m", "mindformers_glm", "chat", str(MINI)),
        *("--min_new_tokens", "1900", "--max_new_tokens", "1900"),
    )
    terminal.wait_for("Ctrl-D ends")
    terminal.wait_for(_READS)
    terminal.type("你好\r")
    terminal.wait_for("我是")
    terminal.type("\x03")
    terminal.wait_for("stopped, ")
    terminal.wait_for(_READS)
    terminal.type("\x03")  # nothing but a new line
    terminal.wait_for(_READS)
    terminal.type("/help\r")
    terminal.wait_for("Ctrl-C stops an answer")
    terminal.wait_for(_READS)
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0
