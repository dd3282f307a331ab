"""Jobs of MindSpore's own processes: they find each other, compute, and die together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tp.conftest import Launcher
from tests.tp.launched import END_S

pytestmark = [pytest.mark.tp, pytest.mark.slow]
ALL_REDUCE = Path(__file__).parent / "all_reduce_worker.py"
# What the launcher adds to msrun's variables.
OWN = "OMP_NUM_THREADS LOG_MF_PATH PYTHONUNBUFFERED MS_NODE_TIMEOUT MINDFORMERS_GLM_LAUNCHER_PIPE"
# What a worker's own import of mindspore sets; msrun's workers inherit it from msrun's.
IMPORTED = "HCCL_CONNECT_TIMEOUT LD_LIBRARY_PATH PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
# What differs from one start to the next.
INCIDENTAL = "MS_SCHED_PORT PYTHONPATH MASTER_PORT PYTHON SHLVL PWD PATH _"


@pytest.fixture
def work(work: Path) -> Path:
    shutil.copy(ALL_REDUCE, work)
    return work


def environment_in(log: Path) -> dict[str, str]:
    """What `fake_worker.py environment` printed."""
    line = next(line for line in log.read_text().splitlines() if line.startswith("{"))
    return dict(json.loads(line))


def test_workers_get_the_environment_that_msrun_gives(launch: Launcher, work: Path) -> None:
    command = "fake_worker.py environment"
    assert launch(command, "2", "auto", "ours", "True", "60").wait().exit_code == 0
    options = "--worker_num=2 --local_worker_num=2 --node_rank=0 --cluster_time_out=60 --join=True"
    msrun = f"-m mindspore.parallel.cluster.run {options} --master_port=8118 --log_dir=theirs"
    subprocess.run(
        [sys.executable, *msrun.split(), *command.split()],
        cwd=work,
        # msrun starts the `python` it finds.
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for rank in (0, 1):
        ours = environment_in(work / "ours" / f"worker_{rank}.log")
        theirs = environment_in(work / "theirs" / f"worker_{rank}.log")
        for name in f"{OWN} {IMPORTED} {INCIDENTAL}".split():
            ours.pop(name, None)
            theirs.pop(name, None)
        assert ours == theirs


def test_ranks_add_up(launch: Launcher, work: Path) -> None:
    ended = launch("all_reduce_worker.py 2", "2").wait()
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout.splitlines() == ["rank 0 of 2", "sum 3.0", "sum 3.0"]
    assert "dispatch success" not in ended.stderr  # MindSpore's farewell says nothing
    assert "rank 1 of 2\n" in (work / "output/msrun_log/worker_1.log").read_text()


@pytest.mark.parametrize(
    ("role", "rank", "exit_code", "name"),
    [("MS_WORKER", 1, 137, "Rank 1"), ("MS_SCHED", 0, 1, "The scheduler")],
)
def test_kill_9_while_ranks_compute_ends_the_job(
    role: str, rank: int, exit_code: int, name: str, launch: Launcher
) -> None:
    job = launch("all_reduce_worker.py 1000000", "2")
    while not job.read_line().startswith("sum"):
        pass
    job.kill(role, rank)
    ended = job.wait(END_S)
    assert ended.exit_code == exit_code
    assert f"error: {name} was killed by SIGKILL" in ended.stderr
