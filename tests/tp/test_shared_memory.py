"""A launched job whose ranks meet in shared memory ends as any other where one of them dies."""

import shutil
from pathlib import Path

import pytest

from tests.tp.conftest import Launcher
from tests.tp.launched import END_S, REPO

pytest.importorskip("mindspore")

pytestmark = pytest.mark.tp
WORKER = Path(__file__).parent / "connect_worker.py"


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_kill_9_of_a_rank_ends_the_job(launch: Launcher, work: Path, rank: int) -> None:
    shutil.copy(WORKER, work)
    # The others would wait a minute for what a living rank owes them.
    environment = {"PYTHONPATH": str(REPO), "GLOG_v": "3", "MS_NODE_TIMEOUT": "60"}
    job = launch("connect_worker.py 2 100000000", "2", **environment)
    for _ in range(100):
        assert job.read_line() == "ranks [[0], [1]]\n"
    job.kill("MS_WORKER", rank)
    ended = job.wait(END_S)
    assert ended.exit_code == 137
    assert f"error: Rank {rank} was killed by SIGKILL" in ended.stderr
