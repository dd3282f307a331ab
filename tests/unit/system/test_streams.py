"""Commands whose stdin, stdout or stderr is closed or full."""

import subprocess
import sys
from pathlib import Path

import pytest

# sh passes "$1" on as Python's program, and closes or fills what the test says.
_MAIN = "import sys; from mindformers_glm.serving.cli import main; sys.exit(main(sys.argv[1:]))"


def _run(redirections: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = f'exec {sys.executable} -c "$0" "$@" {redirections}'
    return subprocess.run(
        ["sh", "-c", script, _MAIN, *words], capture_output=True, text=True, cwd=cwd, timeout=60
    )


def test_closed_stdout_is_no_error(tmp_path: Path) -> None:
    run = _run(">&-", "cache", "list", str(tmp_path), cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_what_belongs_on_a_closed_stderr_is_not_printed(tmp_path: Path) -> None:
    run = _run("2>&-", "cache", "list", str(tmp_path / "none"), cwd=tmp_path)
    assert (run.returncode, run.stdout) == (1, "")


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os; from mindformers_glm.system.streams import open_closed_streams as f; f(); "
        f"assert os.open({str(tmp_path)!r}, os.O_RDONLY) > 2"
    )
    script = f'exec {sys.executable} -c "$0" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", script, code], timeout=60).returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_stdout_is_one_sentence(
    unbuffered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    run = _run(">/dev/full", "cache", "list", str(tmp_path), cwd=tmp_path)
    assert (run.returncode, run.stderr) == (
        1,
        "error: Cannot write to stdout: No space left on device.\n",
    )


def test_full_stderr_stops_nothing(tmp_path: Path) -> None:
    code = "from mindformers_glm.system.log import note; note('a'); print('went on')"
    script = f'exec {sys.executable} -c "$0" 2>/dev/full'
    run = subprocess.run(["sh", "-c", script, code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "went on\n")


def test_closed_stdin_is_said_as_it_is(tmp_path: Path) -> None:
    run = _run("<&-", "predict", "--predict_data", "-", cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr == "error: --predict_data - reads stdin, which is closed: give a file.\n"


def test_working_directory_that_was_removed_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'rmdir "$PWD"; exec {sys.executable} -c "$0" download glm-4-9b'
    run = subprocess.run(
        ["sh", "-c", script, _MAIN], capture_output=True, text=True, cwd=gone, timeout=60
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: The working directory cannot be used (No such file or")
