"""Two hosts of one rank each: two network namespaces joined by a cable of their own."""

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tp.launched import END_S, Ended, Job, wait_until
from tests.tp.main_job import FLOAT32, RESULT, SPLIT, answer_alone
from tests.tp.test_cluster import ALL_REDUCE
from tests.two_hosts import ADDRESSES, run_on, two_hosts

pytestmark = [pytest.mark.tp, pytest.mark.slow]
CONNECT = Path(__file__).parent / "connect_worker.py"
MASTER = ADDRESSES[0]
LaunchOn = Callable[..., Job]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two hosts."""
    with two_hosts("t") as names:
        yield names


@pytest.fixture
def launch_on(hosts: tuple[str, str], launch: Callable[..., Job], work: Path) -> LaunchOn:
    """Start the launcher of one host; both work in one folder, as on a shared file system."""
    shutil.copy(ALL_REDUCE, work)
    shutil.copy(CONNECT, work)

    def launch_on(
        host: int,
        command: str,
        *,
        node_rank: int | None = None,
        timeout_s: int = 60,
        **environ: str,
    ) -> Job:
        number = str(host if node_rank is None else node_rank)
        numbers = ["2", "1", MASTER, "8118", number, "logs", "True", str(timeout_s)]
        return launch(command, *numbers, prefix=run_on(hosts[host]), **environ)

    return launch_on


def wait(*jobs: Job) -> list[Ended]:
    return [job.wait(END_S) for job in jobs]


def test_ranks_of_two_hosts_add_up(launch_on: LaunchOn, work: Path) -> None:
    # Host 1 first: it has to wait for the scheduler.
    host_1 = launch_on(1, "all_reduce_worker.py 2")
    host_0 = launch_on(0, "all_reduce_worker.py 2")
    ended_0, ended_1 = wait(host_0, host_1)
    assert (ended_0.exit_code, ended_1.exit_code) == (0, 0), (ended_0.stderr, ended_1.stderr)
    assert ended_0.stdout.splitlines() == ["rank 0 of 2", "sum 3.0", "sum 3.0"]
    assert ended_1.stdout == ""
    assert "rank 1 of 2\n" in (work / "logs" / "worker_1.log").read_text()
    logs = sorted(path.name for path in (work / "logs").glob("*.log"))
    assert logs == ["scheduler.log", "worker_0.log", "worker_1.log"]


@pytest.mark.weights
def test_two_hosts_answer_as_one_process_does(launch_on: LaunchOn, work: Path) -> None:
    settings = f"{FLOAT32} --max_new_tokens 16 --predict_data '请介绍一下北京' '1 + 1 ='"
    ended = wait(*(launch_on(host, f"{SPLIT} {settings}") for host in (0, 1)))
    assert [one.exit_code for one in ended] == [0, 0], (ended[0].stderr, ended[1].stderr)
    assert len(ended[0].stdout.splitlines()) == 2
    assert ended[1].stdout == ""
    assert (work / RESULT).read_text(encoding="utf-8") == answer_alone(work, settings)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_both_hosts(rank: int, launch_on: LaunchOn) -> None:
    # MindSpore's heartbeat tells host 0 that host 1 is gone; a shorter one saves time here.
    jobs = [
        launch_on(host, "all_reduce_worker.py 10000000", MS_NODE_TIMEOUT="5") for host in (0, 1)
    ]
    while not jobs[0].read_line().startswith("sum"):
        pass
    jobs[0].kill("MS_WORKER", rank)
    ended = wait(*jobs)
    other = ended[1 - rank]
    assert ended[rank].exit_code == 137
    assert f"error: Rank {rank} was killed by SIGKILL" in ended[rank].stderr
    assert other.exit_code != 0
    if rank == 0:  # with it the scheduler is gone
        assert "error: Rank 1 was killed by SIGTERM (kill, or MindSpore" in other.stderr
    else:
        assert re.search(
            "The node: 1 is timed out|error: Rank 1 of the job at .* has given no sign",
            other.stderr,
        )


def test_a_host_that_does_not_come(launch_on: LaunchOn) -> None:
    ended = launch_on(0, "connect_worker.py 2", timeout_s=3).wait(END_S)
    assert ended.exit_code == 1
    wanted = f"error: Not all 2 processes of the job met at {MASTER}:8118 within 3 seconds: "
    assert wanted in ended.stderr
    assert "RuntimeError" not in ended.stderr


def test_a_second_host_of_the_same_number_is_refused(launch_on: LaunchOn, work: Path) -> None:
    host_0 = launch_on(0, "connect_worker.py 2")
    log = work / "logs" / "scheduler.log"
    wait_until(lambda: log.exists() and "registered successfully" in log.read_text())
    ended = launch_on(1, "connect_worker.py 2", node_rank=0).wait(END_S)
    assert ended.exit_code == 1
    wanted = f"error: The job at {MASTER}:8118 has another rank 0 already: give every host"
    assert wanted in ended.stderr
    host_0.send(signal.SIGINT)
    assert host_0.wait(END_S).exit_code == 130


def test_a_rank_that_cannot_start_is_told_on_its_host(launch_on: LaunchOn) -> None:
    ended = launch_on(1, "no_such.py").wait()
    assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
    assert "no_such.py" in ended.stderr
