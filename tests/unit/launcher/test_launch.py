"""What the launcher says before anything starts."""

import re
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from mindformers_glm.config.launch_config import DEFAULT_PORT
from mindformers_glm.launcher import launch as launch_module
from mindformers_glm.launcher.job import Job
from mindformers_glm.launcher.launch import launch, name_ranks


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (range(1), "rank 0"),
        (range(1, 2), "rank 1"),
        (range(2), "ranks 0 and 1"),
        (range(8), "ranks 0 to 7"),
        (range(4, 8), "ranks 4 to 7"),
    ],
)
def test_ranks_are_named_as_one_two_or_a_range(ranks: range, text: str) -> None:
    assert name_ranks(ranks) == text


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    """The jobs that would have been run, in an empty folder with no MASTER_PORT set."""
    found: list[Job] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr(launch_module, "run_job", lambda job: found.append(job) or 0)
    return found


def _take_default_port() -> ExitStack:
    """Listen at the default port, unless somebody else does already."""
    held = ExitStack()
    with suppress(OSError):
        held.enter_context(socket.create_server(("127.0.0.1", DEFAULT_PORT)))
    return held


@pytest.mark.parametrize("form", [[], ["--worker_num=2"], ["--worker-num=2", "--join=True"]])
def test_a_default_port_that_is_taken_gives_way_to_a_free_one(
    form: list[str], jobs: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    with _take_default_port():
        assert launch([*form, "python -c 1"]) == 0
    assert len(jobs) == 1
    told = rf"port {DEFAULT_PORT} of 127\.0\.0\.1 is taken: this job takes (5|6)\d\d\d\d\n"
    assert re.search(told, capsys.readouterr().err)


def test_a_chosen_port_that_is_taken_is_an_error(
    jobs: list[Job], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _take_default_port():
        assert launch([f"--master_port={DEFAULT_PORT}", "python -c 1"]) == 1
        monkeypatch.setenv("MASTER_PORT", str(DEFAULT_PORT))
        assert launch(["python -c 1"]) == 1
    assert capsys.readouterr().err.count(f"error: Port {DEFAULT_PORT} of 127.0.0.1 is taken") == 2
    assert jobs == []
