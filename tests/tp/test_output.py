"""What rank 0 says on a terminal, and at the end of a job that is ended."""

import signal
import sys
from pathlib import Path

import pytest

from scripts.bench.terminal import run_in_terminal
from tests.tp.conftest import Launcher
from tests.tp.launched import LAUNCHER

pytestmark = pytest.mark.tp
ENVIRON = {"PYTHON": sys.executable, "MASTER_PORT": "auto"}


def test_rank_0_has_a_terminal_of_the_same_size_and_keeps_its_order(work: Path) -> None:
    command = ["bash", str(LAUNCHER), "fake_worker.py terminal", "2"]
    run = run_in_terminal(command, folder=work, environ=ENVIRON, columns=77)
    assert run.exit_code == 0
    lines = run.text.split("\r\n")
    assert lines[-4:] == ["<stderr> True 77", "<stdout> True 77", "<stderr> True 77", ""]
    # The other ranks' logs and its own have plain lines.
    for rank in range(2):
        log = (work / "output" / "msrun_log" / f"worker_{rank}.log").read_bytes()
        assert b"\r" not in log
        assert f"<stderr> {rank == 0}".encode() in log


@pytest.mark.parametrize(
    ("redirected", "expected"),
    [
        (">out.txt", ["<stderr> True 77", "<stderr> True 77"]),
        ("2>err.txt", ["<stdout> True 77"]),
        (">out.txt 2>err.txt", []),
    ],
)
def test_a_stream_that_is_redirected_is_no_terminal(
    redirected: str, expected: list[str], work: Path
) -> None:
    command = f"bash {LAUNCHER} 'fake_worker.py terminal' 1 {redirected}"
    run = run_in_terminal(["bash", "-c", command], folder=work, environ=ENVIRON, columns=77)
    assert run.exit_code == 0
    assert [line for line in run.text.split("\r\n") if line.startswith("<std")] == expected


@pytest.mark.parametrize("how", ["signal", "failure"])
def test_last_words_of_rank_0_are_shown(how: str, launch: Launcher) -> None:
    job = launch("fake_worker.py tidy", "2")
    job.wait_until_ready(0, 1)
    if how == "signal":
        job.send(signal.SIGINT)
    else:
        job.kill("MS_WORKER", 1)
    ended = job.wait()
    assert ended.exit_code == (130 if how == "signal" else 137)
    assert ended.stdout.splitlines() == ["rank 0 starts", "finished answers"]
    assert "mindformers_glm: missing answers\n" in ended.stderr
    assert ended.stderr.count("interrupted") == (1 if how == "signal" else 0)
