"""A process of the job: started so that it cannot outlive the launcher."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.parents import die_with_parent

# linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Child:
    """A started process, how messages call it, and the file its output goes to."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N if signal N killed it."""
        return self.process.poll()

    def end(self, signal_number: signal.Signals) -> None:
        """Send a signal to the process and to what it started in its process group."""
        if self.exit_code is None:
            os.killpg(self.process.pid, signal_number)


def start_child(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    outputs: tuple[int, int] | None = None,
    has_stdin: bool = False,
    kept_files: tuple[int, ...] = (),
) -> Child:
    """Start a process in a session of its own, so that Ctrl-C reaches only the launcher.

    Args:
        outputs: its stdout and stderr, to be closed by the caller; None: both are `log`.
        has_stdin: it reads the launcher's stdin; else there is nothing to read.
        kept_files: of the launcher's files those that it has too.

    Raises:
        ConfigError: the program cannot be run or the log not be written.
    """
    try:
        with log.open("wb") as log_file:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=None if has_stdin else subprocess.DEVNULL,
                stdout=outputs[0] if outputs else log_file,
                stderr=outputs[1] if outputs else log_file,
                pass_fds=kept_files,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # the launcher has one thread, so this is safe
            )
    except OSError as problem:
        raise ConfigError(f"Cannot start {name}: {problem}.") from None
    return Child(name, log, process)


def adopt_orphans() -> None:
    """Make processes whose parent dies children of this one, so that it can find them."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
