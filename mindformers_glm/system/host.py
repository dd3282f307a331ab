"""The machine as an examination sees it: files, environment and programs, all replaceable.

Nothing here raises: what cannot be read is not there.
"""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_MAX_CHARACTERS = 2**20  # of a file, and of what a program prints


@dataclass(frozen=True)
class ProgramOutput:
    """What a program printed, or why there is nothing.

    Attributes:
        text: its stdout; empty if it failed.
        problem: "not found", "no answer in 5 s", "exit code 3"; empty if it succeeded.
    """

    text: str
    problem: str = ""


def run_program(
    command: Sequence[str], timeout_s: float, environ: Mapping[str, str]
) -> ProgramOutput:
    """Run a program that should answer at once, and end it if it does not."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as problem:
        is_missing = isinstance(problem, FileNotFoundError)
        return ProgramOutput("", "not found" if is_missing else problem.strerror or str(problem))
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end_group(process)
        return ProgramOutput("", f"no answer in {timeout_s:g} s")
    if process.returncode != 0:
        return ProgramOutput("", f"exit code {process.returncode}")
    return ProgramOutput(output.decode(errors="replace")[:_MAX_CHARACTERS])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    # A script may have started what hangs, and a driver's call that hangs cannot be ended at all:
    # it is not waited for.
    try:
        os.killpg(process.pid, 9)
        process.communicate(timeout=1)
    except (OSError, subprocess.TimeoutExpired):
        if process.stdout is not None:
            process.stdout.close()


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        root: what stands in the place of /.
        environ: the environment's variables.
        run: starts a program, see `run_program`.
    """

    environ: Mapping[str, str]
    root: Path = Path("/")
    run: Callable[[Sequence[str], float, Mapping[str, str]], ProgramOutput] = field(
        default=run_program
    )

    def path(self, name: str | Path) -> Path:
        """Where the file /`name` is."""
        return self.root / str(name).lstrip("/")

    def read(self, name: str | Path) -> str | None:
        """The text of a file, without blanks around it; None where it cannot be read."""
        try:
            with self.path(name).open(encoding="utf-8", errors="replace") as file:
                return file.read(_MAX_CHARACTERS).strip()
        except (OSError, ValueError):
            return None

    def exists(self, name: str | Path) -> bool:
        """Whether there is such a file or folder."""
        try:
            return self.path(name).exists()
        except (OSError, ValueError):
            return False

    def glob(self, folder: str, pattern: str) -> list[Path]:
        """What a folder has of this pattern, sorted."""
        try:
            return sorted(self.path(folder).glob(pattern))
        except (OSError, ValueError):
            return []
