"""The script's argument forms, in a real shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tp.conftest import Launcher
from tests.tp.launched import LAUNCHER

pytestmark = pytest.mark.tp


@pytest.fixture
def passed_on(tmp_path: Path) -> dict[str, str]:
    """An environment where the script prints what it would call the launcher with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    python.chmod(0o755)
    return os.environ | {"PYTHON": str(python)}


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], []),
        (["2"], ["--worker_num=2"]),
        (
            ["2", "8119", "my logs", "True", "60"],
            [
                "--worker_num=2",
                "--master_port=8119",
                "--log_dir=my logs",
                "--join=True",
                "--cluster_time_out=60",
            ],
        ),
        (
            ["4", "2", "10.0.0.1", "8119", "1", "logs", "False", "60"],
            [
                "--worker_num=4",
                "--local_worker_num=2",
                "--master_addr=10.0.0.1",
                "--master_port=8119",
                "--node_rank=1",
                "--log_dir=logs",
                "--join=False",
                "--cluster_time_out=60",
            ],
        ),
    ],
)
def test_positions_have_msruns_names(
    arguments: list[str], options: list[str], passed_on: dict[str, str]
) -> None:
    command = "run.py --predict_data 'a  b' \"it's\" $(no) `no` *"
    run = subprocess.run(
        ["bash", str(LAUNCHER), command, *arguments],
        env=passed_on,
        capture_output=True,
        text=True,
        check=True,
    )
    words = ["-m", "mindformers_glm.launcher", *options, "--", command]
    assert (run.stdout.splitlines(), run.stderr) == (words, "")


@pytest.mark.parametrize("number", [0, 3, 4, 5, 7, 8, 10])
def test_other_numbers_of_arguments_are_refused(number: int, launch: Launcher) -> None:
    ended = launch(*["2"] * number).wait()
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith(
        f"error: msrun_launcher.sh takes 1, 2, 6 or 9 arguments, got {number}"
    )
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "named"),
    [
        (["fake_worker.py tell", "two"], 2, "WORKER_NUM"),
        (["fake_worker.py tell", "-1"], 2, "'-1'"),
        (["fake_worker.py tell", "2", "99999", "logs", "True", "60"], 2, "MASTER_PORT"),
        (["fake_worker.py 'tell", "2"], 2, "quotation"),
        (["-x", "2"], 1, "-x"),
        (["no_such.py", "2"], 1, "no_such.py"),
        (["fake_worker.py tell", "2", "auto", "fake_worker.py/logs", "True", "60"], 1, "LOG_DIR"),
        (
            ["fake_worker.py tell", "2", "1", "no-host.invalid", "8118", "0", "l", "True", "9"],
            1,
            "no-host",
        ),
        (
            ["fake_worker.py tell", "2", "1", "127.0.0.1", "8118", "1", "l", "True", "9"],
            1,
            "MASTER_ADDR '127.0.0.1' is this host alone",
        ),
        (
            ["fake_worker.py tell", "2", "1", "localhost", "8118", "0", "l", "True", "9"],
            1,
            "MASTER_ADDR 'localhost' (127.0.0.1) is this host alone",
        ),
        (
            ["fake_worker.py tell", "2", "1", "0.0.0.0", "8118", "0", "l", "True", "9"],
            1,
            "MASTER_ADDR '0.0.0.0' is this host alone",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(
    arguments: list[str], exit_code: int, named: str, launch: Launcher, work: Path
) -> None:
    ended = launch(*arguments).wait()
    assert (ended.exit_code, ended.stdout) == (exit_code, "")
    assert ended.stderr.startswith("error: ")
    assert named in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert sorted(path.name for path in work.iterdir()) == ["fake_worker.py"]


def test_help_names_the_arguments(launch: Launcher) -> None:
    ended = launch("--help").wait()
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT" in ended.stdout


def test_an_interpreter_that_is_not_there_is_one_sentence(launch: Launcher) -> None:
    ended = launch("fake_worker.py tell", "2", PYTHON="no-python").wait()
    assert ended.exit_code == 1
    assert ended.stderr.startswith("error: There is no interpreter no-python")


def test_an_interpreter_without_mindspore_is_one_sentence(launch: Launcher, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: no installed packages
    python.chmod(0o755)
    ended = launch("fake_worker.py tell", "2", PYTHON=str(python)).wait()
    assert (ended.exit_code, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert "has no mindspore" in ended.stderr
