"""One process dies, one signal comes: the whole job ends, says why, and leaves nothing behind.

The workers are fake; the scheduler is MindSpore's. That nothing is left is checked by `launch`.
"""

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.tp.conftest import Launcher
from tests.tp.launched import END_S, processes_in, wait_until

pytestmark = pytest.mark.tp
LOGS = "output/msrun_log"


def test_a_job_prints_and_returns_what_rank_0_does(launch: Launcher, work: Path) -> None:
    ended = launch("fake_worker.py tell 'a  b' \"it's\" 请介绍一下北京", "2").wait()
    assert ended.exit_code == 0
    assert ended.stdout.splitlines() == [
        "rank 0 starts",
        json.dumps(["a  b", "it's", "请介绍一下北京"]),
    ]
    first, *others = ended.stderr.splitlines()
    assert first.startswith("mindformers_glm: ranks 0 and 1 of 2, 127.0.0.1:")
    assert first.endswith(f"logs in {LOGS}")
    assert others == ["rank 0 warns"]
    logs = {path.name for path in (work / LOGS).glob("*.log")}
    assert logs == {"scheduler.log", "worker_0.log", "worker_1.log"}
    for rank in (0, 1):
        lines = (work / LOGS / f"worker_{rank}.log").read_text().splitlines()
        # Rank 0's two streams are read apart, so their order may differ.
        assert {f"rank {rank} starts", f"rank {rank} warns"} <= set(lines)
        assert len(lines) == 3


def test_output_comes_while_the_job_runs(launch: Launcher) -> None:
    job = launch("fake_worker.py wait", "2")
    assert job.read_line() == "rank 0 starts\n"
    job.send(signal.SIGTERM)
    assert job.wait(END_S).exit_code == 128 + signal.SIGTERM


def test_one_process_runs_too(launch: Launcher) -> None:
    # Upstream prints a hint and ends with 0 without running anything.
    ended = launch("fake_worker.py tell one", "1").wait()
    assert (ended.exit_code, ended.stdout.splitlines()[1]) == (0, '["one"]')


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("action", "exit_code", "reason"),
    [
        ("exit {} 3", 3, "ended with exit code 3"),
        ("raise {}", 1, "ended with exit code 1"),
        ("crash {}", 128 + signal.SIGSEGV, "was killed by SIGSEGV"),
    ],
)
def test_a_worker_that_ends_badly_ends_the_job(
    action: str, exit_code: int, reason: str, rank: int, launch: Launcher
) -> None:
    ended = launch(f"fake_worker.py {action.format(rank)}", "2").wait(END_S)
    assert ended.exit_code == exit_code
    assert f"error: Rank {rank} {reason}, so the job was ended" in ended.stderr
    assert f"{LOGS}/worker_{rank}.log" in ended.stderr
    if action.startswith("raise"):
        # Once: rank 0's own words are on the screen already.
        assert ended.stderr.count("ValueError: bad luck") == 1


@pytest.mark.parametrize("role", ["MS_SCHED", "MS_WORKER"])
def test_kill_9_at_the_start_ends_the_job(role: str, launch: Launcher) -> None:
    job = launch("fake_worker.py wait", "2")
    job.kill(role, 0)
    ended = job.wait(END_S)
    name, code = ("The scheduler", 1) if role == "MS_SCHED" else ("Rank 0", 137)
    assert ended.exit_code == code
    assert f"error: {name} was killed by SIGKILL (kill -9" in ended.stderr


def test_kill_9_of_a_rank_of_a_server_is_exit_code_1(launch: Launcher) -> None:
    job = launch("fake_worker.py server", "2")
    while job.read_line() != "serves\n":
        pass
    job.kill("MS_WORKER", 0)
    ended = job.wait(END_S)
    assert ended.exit_code == 1
    assert "error: Rank 0 was killed by SIGKILL (kill -9" in ended.stderr


def test_a_signal_to_the_scheduler_is_not_for_it(launch: Launcher) -> None:
    job = launch("fake_worker.py wait", "2")
    job.wait_until_ready(0, 1)
    wait_until(lambda: job.find("MS_SCHED", 0) is not None)
    status = Path(f"/proc/{job.find('MS_SCHED', 0)}/status")

    def blocks_sigterm() -> bool:
        (blocked,) = re.findall(r"^SigBlk:\s+(\w+)$", status.read_text(), re.MULTILINE)
        return bool(int(blocked, 16) >> (signal.SIGTERM - 1) & 1)

    wait_until(blocks_sigterm)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(int(status.parent.name), number)
    job.send(signal.SIGTERM)
    assert job.wait(END_S).exit_code == 143


def test_a_worker_that_ignores_sigterm_is_killed(launch: Launcher) -> None:
    job = launch("fake_worker.py deaf", "2")
    job.wait_until_ready(0, 1)
    job.kill("MS_WORKER", 1)
    assert job.wait(END_S).exit_code == 137


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_all(number: signal.Signals, exit_code: int, launch: Launcher) -> None:
    job = launch("fake_worker.py wait", "2")
    job.wait_until_ready(0, 1)
    job.send(number)
    ended = job.wait(END_S)
    assert ended.exit_code == exit_code
    assert ended.stderr.splitlines()[-1] == "interrupted"


def test_processes_that_workers_have_left_behind_end_too(launch: Launcher) -> None:
    job = launch("fake_worker.py parent", "2")
    job.wait_until_ready(0, 1)
    wait_until(lambda: sum(p.name() == "sleep" for p in processes_in(job.work)) == 2)
    job.send(signal.SIGINT)
    assert job.wait(END_S).exit_code == 130


def test_kill_9_of_the_launcher_ends_all(launch: Launcher) -> None:
    job = launch("fake_worker.py deaf", "2")
    job.wait_until_ready(0, 1)
    wait_until(lambda: job.find("MS_SCHED", 0) is not None)
    job.send(signal.SIGKILL)
    assert job.wait(END_S).exit_code == -signal.SIGKILL


def test_a_reader_that_leaves_ends_the_job(launch: Launcher) -> None:
    job = launch("fake_worker.py flood", "2")
    assert job.read_line()
    job.close_output()
    wait_until(lambda: not processes_in(job.work), END_S)


def test_a_full_disk_ends_the_job_and_all_it_started(launch: Launcher) -> None:
    # A limit on the size of files stands in for the disk: the log of rank 0 cannot grow further.
    prefix = ("bash", "-c", 'ulimit -f 64 && exec "$@"', "bash")
    command = "sh -c 'setsid --fork sleep 300; exec yes'"
    ended = launch(command, "1", prefix=prefix).wait(END_S)
    assert ended.exit_code == 1
    _, *others = ended.stderr.splitlines()
    assert len(others) == 1
    assert others[0].startswith("error: The job was ended, because its output cannot be kept: ")


def test_a_taken_port_is_told_before_anything_starts(launch: Launcher, work: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        ended = launch("fake_worker.py tell", "2", MASTER_PORT=port).wait()
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"error: Port {port} of 127.0.0.1 is taken, perhaps by another job: give another "
        "MASTER_PORT, or auto for a free one from 50000 to 65535.\n"
    )
    assert not (work / "output").exists()


def test_two_jobs_at_once_in_one_folder_have_ports_and_logs_of_their_own(
    launch: Launcher, work: Path
) -> None:
    jobs = [launch("fake_worker.py wait", "2") for _ in range(2)]
    wait_until(lambda: len(list((work / "output").glob("msrun_log*/worker_1.log"))) == 2)
    for job in jobs:
        job.send(signal.SIGINT)
    notes = [job.wait(END_S).stderr.splitlines()[0] for job in jobs]
    ports = {note.split("127.0.0.1:")[1].split(",")[0] for note in notes}
    folders = {note.rsplit(" ", 1)[1] for note in notes}
    assert len(ports) == 2
    assert folders in [{LOGS, f"{LOGS}_{port}"} for port in ports]


def test_a_second_job_at_the_same_port_is_refused(launch: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    first = launch("fake_worker.py wait", "2", port, "logs", "True", "60")
    first.wait_until_ready(0)  # long before MindSpore's scheduler listens
    second = launch("fake_worker.py tell", "2", port, "logs", "True", "60").wait()
    assert second.stderr.startswith(f"error: Port {port} of 127.0.0.1 is taken")
    first.send(signal.SIGINT)
    assert first.wait(END_S).exit_code == 130


def test_join_false_returns_while_the_job_runs(launch: Launcher, work: Path) -> None:
    job = launch("fake_worker.py wait", "2", "auto", "logs", "False", "60")
    ended = job.wait()
    assert (ended.exit_code, ended.stdout) == (0, "")
    job.wait_until_ready(0, 1)
    job.kill("MS_WORKER", 1)
    wait_until(lambda: not processes_in(work), END_S)
    assert "rank 0 starts" in (work / "logs" / "worker_0.log").read_text()
    log = (work / "logs" / "launcher.log").read_text()
    assert "Rank 1 was killed by SIGKILL" in log
    assert "exit code 137" in log


def test_the_watcher_of_a_job_in_the_background_ends_it(launch: Launcher, work: Path) -> None:
    job = launch("fake_worker.py wait", "2", "auto", "logs", "False", "60")
    watcher = int(job.wait().stderr.split("process ")[1].split()[0])
    job.wait_until_ready(0, 1)
    os.kill(watcher, signal.SIGTERM)
    wait_until(lambda: not processes_in(work), END_S)


def test_nohup_keeps_a_job_alive(launch: Launcher) -> None:
    job = launch("fake_worker.py wait", "2", prefix=("nohup",))
    job.wait_until_ready(0, 1)
    job.send(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        job.wait(1)
    job.send(signal.SIGTERM)
    assert job.wait(END_S).exit_code == 143


def test_paths_may_have_spaces(launch: Launcher, work: Path) -> None:
    logs = work / "my logs"
    ended = launch(f"'{work}/fake_worker.py' tell", "2", "auto", str(logs), "True", "60").wait()
    assert ended.exit_code == 0
    assert (logs / "worker_1.log").is_file()
