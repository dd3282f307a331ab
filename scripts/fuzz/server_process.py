"""A server in processes of its own: where it listens, what it holds, how it ends."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from raw_http import get

REPO = Path(__file__).resolve().parents[2]
_START_S = 600.0
_END_S = 60.0
_SAMPLE = re.compile(rb"^(\S+?)\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass
class Server:
    """A running server.

    log: what it has written to stderr, if that can be read.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path | None

    def memory_bytes(self) -> int:
        """Resident memory of all its processes."""
        total = 0
        for process in self._processes():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def find_rank(self, rank: int) -> psutil.Process:
        """The process of a rank.

        Raises:
            LookupError: there is none.
        """
        for process in self._processes():
            with suppress(psutil.Error):
                environment = process.environ()
                is_worker = environment.get("MS_ROLE") == "MS_WORKER"
                if is_worker and environment.get("RANK_ID") == str(rank):
                    return process
        raise LookupError(f"no rank {rank}")

    async def counts(self) -> dict[str, float]:
        """What /metrics says, by name; the last of several label sets."""
        page = await get(self.port, "/metrics")
        return {name.decode(): float(value) for name, value in _SAMPLE.findall(page.body)}

    async def idle_counts(self, timeout_s: float = 60.0) -> dict[str, float]:
        """The counts once no request is under way, or as they are after a time."""
        end_s = time.monotonic() + timeout_s
        while True:
            counts = await self.counts()
            is_idle = not counts["glm:open_requests"] and not counts["vllm:num_requests_running"]
            if is_idle or time.monotonic() > end_s:
                return counts
            await asyncio.sleep(0.1)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code; -9 where it did not end."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout_s: float = _END_S) -> int:
        """The exit code; -9 where it does not end."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -signal.SIGKILL

    def text(self) -> str:
        """What it has told so far."""
        return self.log.read_text(errors="replace") if self.log else ""

    def _processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


@contextmanager
def serve(folder: str, *options: str, log_device: str | None = None) -> Iterator[Server]:
    """Start a server and wait until it answers.

    Args:
        log_device: where its stderr goes; None: to a file that is removed.
    Raises:
        RuntimeError: it does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mindformers_glm", "serve", folder, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    with tempfile.TemporaryDirectory() as work:
        log = Path(work) / "stderr"
        with open(log_device or log, "wb") as stderr:
            process = subprocess.Popen(
                [*command, *options], stderr=stderr, stdout=stderr, cwd=work, env=environment
            )
        server = Server(process, port, None if log_device else log)
        try:
            _wait_until_healthy(server)
            yield server
        finally:
            if process.poll() is None:
                server.end()


def _wait_until_healthy(server: Server) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and server.process.poll() is None:
        try:
            if asyncio.run(get(server.port, "/health")).status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server does not answer: {server.text()[-1000:]}")
