"""One host's share of a job: its processes started, watched and ended together."""

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from mindformers_glm.config.launch_config import LaunchConfig
from mindformers_glm.core.errors import GlmError
from mindformers_glm.launcher.child import Child, adopt_orphans, start_child
from mindformers_glm.launcher.cluster import (
    cluster_environment,
    scheduler_environment,
    worker_environment,
)
from mindformers_glm.launcher.output import OutputRelay, last_error_lines
from mindformers_glm.launcher.wishes import RankWishes

_POLL_S = 0.1
# After one process has failed: time for others to end with a message of their own.
_SETTLE_S = 2.0
# From SIGTERM to SIGKILL. A worker that waits for a dead one inside a collective never answers.
_STOP_S = 5.0
_SIGNAL_REASONS = {
    "SIGKILL": " (kill -9, or the system when memory ran out)",
    "SIGTERM": " (kill, or MindSpore when it lost a process of another host)",
}


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `message` is empty if all went well."""

    exit_code: int
    message: str = ""


class Job:
    """The scheduler, if it runs on this host, and this host's workers."""

    def __init__(
        self, config: LaunchConfig, address: str, port: int, log_dir: Path, has_scheduler: bool
    ) -> None:
        """Starts nothing yet; `address` and `port` are the scheduler's."""
        self._config = config
        self._environment = {**config.environment, **cluster_environment(config, address, port)}
        self._log_dir = log_dir
        self._has_scheduler = has_scheduler
        self._scheduler: Child | None = None
        self._workers: list[Child] = []
        self._relay: OutputRelay | None = None
        self._signals: list[int] = []
        self._num_handed_on = 0  # of the signals, to rank 0
        self._wishes: RankWishes | None = None  # of rank 0, where it runs on this host

    def start(self) -> None:
        """Start all processes of this host.

        Raises:
            ConfigError: the program cannot be run.
        """
        adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup makes a program ignore SIGHUP: leave that so.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note_signal)
        if self._has_scheduler:
            self._scheduler = start_child(
                "the scheduler",
                [sys.executable, "-m", "mindformers_glm.launcher.rendezvous"],
                self._environment | scheduler_environment(),
                self._log_dir / "scheduler.log",
            )
        for rank in self._config.ranks:
            self._start_worker(rank)

    def _start_worker(self, rank: int) -> None:
        # Upstream's file names; the launcher of rank 0's host shows what rank 0 says.
        log = self._log_dir / f"worker_{rank}.log"
        relay = wishes = None
        environment = self._environment | worker_environment(self._config, rank)
        if rank == 0:
            self._wishes = wishes = RankWishes()
            environment |= wishes.variables
            self._relay = relay = OutputRelay(log) if self._config.is_joined else None
        worker = start_child(
            f"rank {rank}",
            self._config.command,
            environment,
            log,
            outputs=(relay.stdout, relay.stderr) if relay else None,
            has_stdin=relay is not None,
            kept_files=(wishes.sender,) if wishes else (),
        )
        self._workers.append(worker)
        if relay is not None:
            relay.begin()
        if wishes is not None:
            wishes.begin()

    def wait(self) -> Outcome:
        """Return when the workers have ended, one process has failed, or a signal has come.

        Raises:
            BrokenPipeError: nobody reads rank 0's output any more.
        """
        while True:
            self._pause(_POLL_S)
            if self._must_end():
                return Outcome(128 + self._signals[0], "interrupted")
            if (failed := self._find_failed()) is not None:
                self._wait_for(self._workers, _SETTLE_S)
                self._drain()
                return self._describe_failure(self._choose_cause(failed))
            if all(worker.exit_code == 0 for worker in self._workers) and self._is_done_elsewhere():
                self._drain()
                return Outcome(0)

    def _must_end(self) -> bool:
        """Whether signals end the job; those that rank 0 takes are handed on to it."""
        for number in self._signals[self._num_handed_on :]:
            if self._wishes is None or not self._wishes.takes(number):
                return True
            self._num_handed_on += 1
            self._workers[0].end(signal.Signals(number))
        return self._wishes is not None and self._wishes.is_late

    def stop(self, *, is_heard: bool) -> None:
        """End whatever still runs; a second signal does it at once.

        Args:
            is_heard: what rank 0 says of its end is shown: the answers that are finished.
        """
        if self._relay is not None:
            self._relay.is_shown, self._relay.is_ending = is_heard, True
        try:
            self._end_processes()
        finally:
            self._kill_descendants()

    def _end_processes(self) -> None:
        if self._scheduler is not None:
            self._scheduler.end(signal.SIGKILL)  # it has nothing to put in order
        for worker in self._workers:
            worker.end(signal.SIGTERM)
        num_signals = len(self._signals)
        deadline_s = time.monotonic() + _STOP_S
        while any(worker.exit_code is None for worker in self._workers):
            self._pause(_POLL_S)
            if time.monotonic() > deadline_s or len(self._signals) > num_signals:
                break
        self._drain()

    def _kill_descendants(self) -> None:
        """Kill what is left, also what the workers started and what has lost its parent."""
        while left := [
            child for child in psutil.Process().children(recursive=True) if _lives(child)
        ]:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _pause(self, duration_s: float) -> None:
        if self._relay is None:
            time.sleep(duration_s)
        else:
            self._relay.forward(duration_s)

    def _drain(self) -> None:
        """Show what rank 0 has written before its end; a process it left behind may go on."""
        deadline_s = time.monotonic() + _SETTLE_S
        while self._relay is not None and self._relay.forward(0):
            if time.monotonic() > deadline_s:
                break

    def _wait_for(self, children: list[Child], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        num_signals = len(self._signals)
        while time.monotonic() < deadline_s and len(self._signals) == num_signals:
            self._pause(_POLL_S)
            if all(child.exit_code is not None for child in children):
                return

    def _is_done_elsewhere(self) -> bool:
        """Whether other hosts need nothing of this one: the scheduler outlives the last worker."""
        if self._scheduler is None or self._config.is_single_host:
            return True
        return self._scheduler.exit_code == 0

    def _find_failed(self) -> Child | None:
        for worker in self._workers:
            if worker.exit_code not in (None, 0):
                return worker
        # The scheduler ends with 0 when the last worker signs off, before that one ends.
        if self._scheduler is not None and self._scheduler.exit_code not in (None, 0):
            return self._scheduler
        return None

    def _choose_cause(self, failed: Child) -> Child:
        """Find what ended first, as far as that can be told.

        MindSpore ends a worker by SIGTERM when it has lost the scheduler or another worker. Of
        workers that end for the same reason, take the lowest rank: its output may be on screen.
        """
        if failed.exit_code == -signal.SIGTERM and self._scheduler and self._scheduler.exit_code:
            return self._scheduler
        reason = (failed.exit_code, last_error_lines(failed.log))
        for worker in self._workers:
            if (worker.exit_code, last_error_lines(worker.log)) == reason:
                return worker
        return failed

    def _describe_failure(self, failed: Child) -> Outcome:
        code = failed.exit_code
        assert code is not None
        message = f"error: {failed.name[0].upper()}{failed.name[1:]} {_describe_exit(code)}"
        message += f", so the job was ended; its log is {failed.log}"
        is_on_screen = self._relay is not None and failed is self._workers[0]
        if not is_on_screen:
            message += _quote("its", last_error_lines(failed.log))
        if code == -signal.SIGTERM and self._scheduler is not None:
            message += _quote("the scheduler's", last_error_lines(self._scheduler.log))
        is_server = self._wishes is not None and self._wishes.is_server
        is_plain = failed is self._scheduler or is_server
        exit_code = 1 if is_plain else code if code > 0 else 128 - code
        return Outcome(exit_code, message)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-code, f"signal {-code}")  # a real-time signal has none
    return f"was killed by {name}{_SIGNAL_REASONS.get(name, '')}"


def _quote(whose: str, lines: list[str]) -> str:
    return "".join(
        [f", {whose} last words:", *(f"\n    {line}" for line in lines)] if lines else []
    )


def run_job(job: Job) -> int:
    """Start a job, wait for its end, end the rest of it, and say what went wrong.

    Returns:
        The exit code: 0, that of the worker that failed (128 + N if signal N killed it), 1 if the
        scheduler or a rank of a server failed, 128 + N after signal N, 141 if nobody reads the
        output any more.
    """
    is_heard = True
    try:
        job.start()
        outcome = job.wait()
    except BrokenPipeError:
        is_heard = False
        # Python flushes stdout again when it exits: give it a place that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome = Outcome(141)
    except GlmError as problem:
        outcome = Outcome(1, f"error: {problem}")
    except OSError as problem:
        outcome = Outcome(
            1, f"error: The job was ended, because its output cannot be kept: {problem}"
        )
    finally:
        job.stop(is_heard=is_heard)
    if outcome.message:
        print(outcome.message, file=sys.stderr)
    return outcome.exit_code
