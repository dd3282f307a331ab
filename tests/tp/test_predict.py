"""The main job in two processes: one answer, one file, and an end whenever a rank dies."""

import ast
import signal
import time
from pathlib import Path

import pytest

from tests.tp.conftest import Launcher
from tests.tp.launched import END_S, Job, wait_until
from tests.tp.main_job import FLOAT32, RESULT, SPLIT, answer_alone

pytestmark = [pytest.mark.tp, pytest.mark.slow, pytest.mark.weights]


def test_two_processes_answer_as_one_does(launch: Launcher, work: Path) -> None:
    settings = f"{FLOAT32} --max_new_tokens 24 --predict_data '请介绍一下北京' '1 + 1 ='"
    ended = launch(f"{SPLIT} {settings}", "2").wait()
    assert ended.exit_code == 0, ended.stderr
    answers = [ast.literal_eval(line) for line in ended.stdout.splitlines()]
    assert len(answers) == 2
    assert ast.literal_eval((work / RESULT).read_text(encoding="utf-8")) == answers
    assert sorted(path.name for path in work.iterdir()) == ["fake_worker.py", "output", RESULT]
    # Whatever is told is told once, by rank 0.
    notes = ended.stderr.splitlines()
    assert len(notes) == len(set(notes))

    assert answer_alone(work, settings) == (work / RESULT).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (SPLIT.replace("model_parallel 2", "model_parallel 4"), "parallel_config.model_parallel"),
        (SPLIT.replace("data_parallel 1", "data_parallel 2"), "parallel_config.data_parallel"),
        (f"{SPLIT} --no_such_option 1", "no_such_option"),
    ],
)
def test_a_bad_setting_is_told_once(command: str, named: str, launch: Launcher, work: Path) -> None:
    ended = launch(f"{command} --predict_data hello", "2").wait(END_S)
    assert ended.exit_code in (1, 2)
    assert ended.stdout == ""
    sentences = [line for line in ended.stderr.splitlines() if named in line]
    assert len(sentences) == 1, ended.stderr
    assert not (work / RESULT).exists()


def wait_until_loading(job: Job, rank: int) -> None:
    """The kernels are mapped right before the first weight is read."""

    def has_kernels() -> bool:
        pid = job.find("MS_WORKER", rank)
        return pid is not None and "_kernels." in Path(f"/proc/{pid}/maps").read_text()

    wait_until(has_kernels)


def check_kept(work: Path, stdout: str) -> None:
    """What is finished is in the file and on stdout; without any, the old file stays."""
    content = (work / RESULT).read_text(encoding="utf-8")
    finished = [] if content == "old" else ast.literal_eval(content)
    assert [ast.literal_eval(line) for line in stdout.splitlines()] == finished


def test_ctrl_c_keeps_what_both_ranks_have_finished(launch: Launcher, work: Path) -> None:
    (work / "questions.txt").write_text("hello\n" * 2000)
    (work / RESULT).write_text("old")
    job = launch(f"{SPLIT} --max_new_tokens 8 --predict_data questions.txt", "2")
    wait_until(lambda: (work / RESULT).read_text() != "old", timeout_s=120)
    job.send(signal.SIGINT)
    ended = job.wait(END_S)
    assert ended.exit_code == 130
    assert ended.stderr.splitlines()[-1] == "interrupted"
    assert ended.stderr.count("interrupted") == 1
    assert "of 2000 answers are finished and saved" in ended.stderr
    assert ended.stdout != ""
    check_kept(work, ended.stdout)


@pytest.mark.parametrize(
    ("phase", "settings"),
    [
        ("loading", "--max_new_tokens 1"),
        ("prefill", "--max_new_tokens 1 --enable_prefix_caching False"),
        ("decode", "--min_new_tokens 1900 --max_new_tokens 1900"),
    ],
)
def test_kill_9_of_a_rank_ends_the_job_and_keeps_what_is_finished(
    phase: str, settings: str, launch: Launcher, work: Path
) -> None:
    # Minutes of one kind of step: long prompts with one token each, or short ones with many.
    length = 300 if phase == "prefill" else 1
    (work / "questions.txt").write_text("".join(f"{n} {'hello ' * length}\n" for n in range(2000)))
    (work / RESULT).write_text("old")
    job = launch(f"{SPLIT} {settings} --predict_data questions.txt", "2")
    wait_until_loading(job, rank=1)
    if phase == "prefill":
        wait_until(lambda: (work / RESULT).read_text() != "old", timeout_s=120)
    elif phase == "decode":
        time.sleep(6)  # weights are loaded and graphs compiled
    job.kill("MS_WORKER", 1)
    ended = job.wait(END_S)
    assert ended.exit_code == 137
    assert ended.stderr.splitlines()[-1].startswith("error: Rank 1 was killed by SIGKILL")
    check_kept(work, ended.stdout)
    assert (ended.stdout != "") == (phase == "prefill")
    left = {path.name for path in work.iterdir()}
    assert left == {"fake_worker.py", "output", "questions.txt", RESULT}
