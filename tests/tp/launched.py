"""Jobs started by scripts/msrun_launcher.sh, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

REPO = Path(__file__).resolve().parents[2]
LAUNCHER = REPO / "scripts" / "msrun_launcher.sh"
FAKE_WORKER = Path(__file__).parent / "fake_worker.py"
# How long a job may take to end once one of its processes has died.
END_S = 30


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a launcher that has ended."""

    exit_code: int
    stdout: str
    stderr: str


class Job:
    """A launcher that runs in `work`, as a shell would start it."""

    def __init__(
        self, work: Path, *arguments: str, prefix: tuple[str, ...] = (), **environ: str
    ) -> None:
        """`arguments` are the script's; `prefix` is put in front of the whole command."""
        self.work = work
        self._process = subprocess.Popen(
            [*prefix, "bash", str(LAUNCHER), *arguments],
            cwd=work,
            env=os.environ | {"PYTHON": sys.executable, "MASTER_PORT": "auto"} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait(self, timeout_s: float = 300) -> Ended:
        stdout, stderr = self._process.communicate(timeout=timeout_s)
        return Ended(self._process.returncode, stdout, stderr)

    def read_line(self) -> str:
        """The next line of stdout, while the job runs."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close_output(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_until_ready(self, *ranks: int) -> list[int]:
        """Wait until fake workers run and return their process ids."""
        files = [self.work / f"ready_{rank}" for rank in ranks]
        wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
        return [int(file.read_text()) for file in files]

    def find(self, role: str, rank: int) -> int | None:
        """Process id of "MS_SCHED" (rank 0) or of one "MS_WORKER", once it is there."""
        wanted = {"MS_ROLE": role, "RANK_ID": str(rank)}
        for process in processes_in(self.work):
            try:
                if wanted.items() <= process.environ().items():
                    return int(process.pid)
            except psutil.Error:
                continue
        return None

    def kill(self, role: str, rank: int) -> None:
        """Kill -9 one process of the job, waiting for it if it is not there yet."""
        wait_until(lambda: self.find(role, rank) is not None)
        pid = self.find(role, rank)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


def wait_until(is_true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.05)


def processes_in(folder: Path) -> list[psutil.Process]:
    """All live processes that work in a folder: launcher, scheduler, workers and their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
