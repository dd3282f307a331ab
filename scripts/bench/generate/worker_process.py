"""The driver's side of protocol.py: starts a worker and asks it."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

_SHOWN_LOG_CHARACTERS = 2000


class WorkerError(Exception):
    """A worker could not load its model, or ended; says what it last wrote."""


class WorkerProcess:
    """One worker in a process of its own; `with` ends it.

    Args:
        name: of the peer, for messages.
        command: program and arguments.
        environment: all variables of the process.
    Attributes:
        ready: what the worker said after loading.
    Raises:
        WorkerError: it ended, or could not do what was asked.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        try:
            self.ready = self._read()
        except BaseException:
            self.close()
            raise

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerError(self._describe_end()) from None
        return self._read()

    def close(self) -> None:
        """End the process: a worker that is not busy ends when its stdin does."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._describe_end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}\n{self._read_log()}")
        return answer

    def _describe_end(self) -> str:
        return f"{self.name} ended with code {self._process.wait()}.\n{self._read_log()}"

    def _read_log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")[-_SHOWN_LOG_CHARACTERS:]
