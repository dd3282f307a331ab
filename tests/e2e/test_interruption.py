"""Ctrl-C at any time, and two runs at once: nothing half-written, nothing finished lost."""

import ast
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.run_process import REPO, Starter, finish

RESULT = "text_generation_result.txt"


def wait_until_mapped(process: subprocess.Popen[str], library: str) -> None:
    """Wait until the process has loaded a shared library whose path contains `library`."""
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 120
    while library not in maps.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def start_long_run(checkpoint: Path, work: Path, start: Starter) -> subprocess.Popen[str]:
    """A run of minutes over an old result file."""
    (work / "questions.txt").write_text("hello\n" * 20_000)
    (work / RESULT).write_text("old")
    return start("--pretrained_model_dir", str(checkpoint), "--predict_data", "questions.txt")


def check_interrupted(process: subprocess.Popen[str], work: Path) -> None:
    """All that is finished is in the file and on stdout; without any, the old file stays."""
    run = finish(process)
    assert run.exit_code == 130, run
    assert run.errors == ["interrupted"]
    assert sorted(path.name for path in work.iterdir()) == ["questions.txt", RESULT]
    content = (work / RESULT).read_text(encoding="utf-8")
    assert [ast.literal_eval(line) for line in run.stdout] == (
        [] if content == "old" else ast.literal_eval(content)
    )
    if run.stdout:
        told = f"{len(run.stdout)} of 20000 answers are finished and saved; missing: prompt"
        assert any(told in note for note in run.notes)


# Inside the import of a C extension an exception would come out as something else or crash.
@pytest.mark.parametrize("library", ["numpy", "libmindspore", "mindspore_ops_cpu"])
def test_ctrl_c_while_loading_is_one_word_and_keeps_the_old_result(
    library: str, checkpoint: Path, work: Path, start: Starter
) -> None:
    process = start_long_run(checkpoint, work, start)
    wait_until_mapped(process, library)
    process.send_signal(signal.SIGINT)
    check_interrupted(process, work)
    assert (work / RESULT).read_text() == "old"


def test_ctrl_c_during_the_first_imports_is_one_word(work: Path, start: Starter) -> None:
    # A package that takes the place of ours and is interrupted while it is imported.
    shutil.copy(REPO / "run_mindformer.py", work)
    (work / "mindformers_glm").mkdir()
    (work / "mindformers_glm" / "__init__.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\n"
    )
    run = finish(start(program=("run_mindformer.py",)))
    assert (run.exit_code, run.stdout, run.errors) == (130, [], ["interrupted"])


@pytest.mark.slow
@pytest.mark.parametrize(("delay_s", "number_of_signals"), [(0.5, 1), (1, 1), (2, 1), (2, 2)])
def test_ctrl_c_while_generating_is_one_word_and_keeps_what_is_finished(
    delay_s: float, number_of_signals: int, checkpoint: Path, work: Path, start: Starter
) -> None:
    process = start_long_run(checkpoint, work, start)
    wait_until_mapped(process, "_kernels.")
    time.sleep(delay_s)  # weights are loaded, graphs compiled or run: all must end well
    for _ in range(number_of_signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    check_interrupted(process, work)


def test_what_is_finished_stays_after_ctrl_c(checkpoint: Path, work: Path, start: Starter) -> None:
    process = start_long_run(checkpoint, work, start)
    deadline = time.monotonic() + 120
    while (work / RESULT).read_text(encoding="utf-8") == "old":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    check_interrupted(process, work)
    assert (work / RESULT).read_text(encoding="utf-8") != "old"


@pytest.mark.slow
def test_two_runs_in_one_folder_leave_one_whole_result(
    checkpoint: Path, work: Path, start: Starter
) -> None:
    argv = ["--pretrained_model_dir", str(checkpoint), "--max_new_tokens", "4", "--predict_data"]
    processes = [start(*argv, prompt) for prompt in ("hello", "bye")]
    runs = [finish(process) for process in processes]
    assert [(run.exit_code, run.errors) for run in runs] == [(0, []), (0, [])]
    told = [note for run in runs for note in run.notes if f"another run writes to {RESULT}" in note]
    assert len(told) == 1  # the one that came second
    answers = [[ast.literal_eval(run.stdout[0])] for run in runs]
    assert ast.literal_eval((work / RESULT).read_text(encoding="utf-8")) in answers
    assert [path.name for path in work.iterdir()] == [RESULT]
