"""A folder for each test, jobs that run there, and the check that nothing is left of them."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tp.launched import FAKE_WORKER, Job, processes_in, wait_until

Launcher = Callable[..., Job]


@pytest.fixture(autouse=True)
def _linux() -> None:
    if sys.platform != "linux":
        pytest.skip("the launcher needs Linux")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder where jobs run, with fake_worker.py in it."""
    folder = tmp_path / "my work"
    folder.mkdir()
    shutil.copy(FAKE_WORKER, folder)
    return folder


@pytest.fixture
def launch(work: Path) -> Iterator[Launcher]:
    """Start jobs in `work`; afterwards no process of theirs may be left."""

    def launch(*arguments: str, **options: object) -> Job:
        return Job(work, *arguments, **options)  # type: ignore[arg-type]

    yield launch
    try:
        wait_until(lambda: not processes_in(work), timeout_s=5)
    finally:
        left = processes_in(work)
        for process in left:
            process.kill()
    assert left == []
