"""The machine as an examination sees it: files, environment, programs, packages, all replaceable.

Nothing here raises: what cannot be read is not there.
"""

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mindformers_glm.system.processors import usable_processors

_MAX_BYTES = 2**20  # of a file, and of what a program prints
_CONTAINER_FILES = (".dockerenv", "run/.containerenv")
_CONTAINER_WORDS = re.compile(r"docker|kubepods|containerd|libpod|lxc")


@dataclass(frozen=True)
class ProgramOutput:
    """What a program printed.

    Attributes:
        text: its stdout; its stdout and stderr where it failed.
        problem: "not found", "no answer in 5 s", "exit code 3"; empty where it succeeded.
    """

    text: str = ""
    problem: str = ""


RunProgram = Callable[[Sequence[str], float, Mapping[str, str]], ProgramOutput]


def run_program(
    command: Sequence[str], timeout_s: float, environ: Mapping[str, str]
) -> ProgramOutput:
    """Run a program that should answer soon, and end it with its children where it does not."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,
        )
    except (OSError, ValueError) as problem:
        is_missing = isinstance(problem, FileNotFoundError)
        reason = getattr(problem, "strerror", None) or str(problem)
        return ProgramOutput(problem="not found" if is_missing else reason)
    try:
        pieces = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end_session(process)
        return ProgramOutput(problem=f"no answer in {timeout_s:g} s")
    stdout, stderr = (piece[-_MAX_BYTES:].decode(errors="replace") for piece in pieces)
    if process.returncode != 0:
        return ProgramOutput(f"{stdout}\n{stderr}".strip(), f"exit code {process.returncode}")
    return ProgramOutput(stdout)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    # A call into a driver that hangs ends for no signal: it is not waited for.
    with suppress(subprocess.TimeoutExpired, OSError):
        process.communicate(timeout=1)


def find_package_version(package: str) -> str | None:
    """The installed version of a Python package; None where there is none."""
    try:
        return version(package)
    except Exception:  # a damaged installation raises anything
        return None


def has_module(name: str) -> bool:
    """Whether Python finds a module of this name, without importing it."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError, OSError):
        return False


def count_free_bytes(folder: Path) -> int:
    """What can still be written to the disk of a folder that exists."""
    return shutil.disk_usage(folder).free


def is_port_free(port: int) -> bool:
    """Whether a server could listen at this port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        environ: the environment's variables.
        root: what stands in the place of /.
        processors: numbers of those this process may run on.
        architecture: of the processor, by its Linux name.
        python: version of the interpreter.
        run: starts a program, see `run_program`.
        find_version: see `find_package_version`.
        has_module: see the function.
        is_port_free: see the function.
        count_free_bytes: see the function.
    """

    environ: Mapping[str, str]
    root: Path = Path("/")
    processors: frozenset[int] = field(default_factory=lambda: frozenset(usable_processors()))
    architecture: str = field(default_factory=platform.machine)
    python: tuple[int, ...] = tuple(sys.version_info[:3])
    run: RunProgram = run_program
    find_version: Callable[[str], str | None] = find_package_version
    has_module: Callable[[str], bool] = has_module
    is_port_free: Callable[[int], bool] = is_port_free
    count_free_bytes: Callable[[Path], int] = count_free_bytes

    def path(self, name: str | Path) -> Path:
        """Where the file /`name` is."""
        return self.root / str(name).lstrip("/")

    def read(self, name: str | Path) -> str | None:
        """The text of a file, without blanks around it; None where it cannot be read."""
        try:
            with self.path(name).open("rb") as file:
                return file.read(_MAX_BYTES).decode(errors="replace").strip()
        except (OSError, ValueError):
            return None

    def exists(self, name: str | Path) -> bool:
        """Whether there is such a file or folder, as far as this user may see."""
        try:
            return self.path(name).exists()
        except (OSError, ValueError):
            return False

    def can_use(self, name: str | Path) -> bool:
        """Whether this user may read and write a file."""
        try:
            return os.access(self.path(name), os.R_OK | os.W_OK)
        except ValueError:
            return False

    def list_names(self, folder: str | Path, pattern: str) -> list[str]:
        """Names in a folder that have this pattern, sorted."""
        try:
            return sorted(path.name for path in self.path(folder).glob(pattern))
        except (OSError, ValueError):
            return []

    def is_container(self) -> bool:
        """Whether this looks like the inside of a container."""
        if any(map(self.exists, _CONTAINER_FILES)) or self.environ.get("container"):
            return True
        return bool(_CONTAINER_WORDS.search(self.read("proc/1/cgroup") or ""))

    def free_bytes(self, folder: str | Path) -> int | None:
        """What can still be written to the disk of a folder, or of the nearest one that exists."""
        path = self.path(folder)
        for candidate in (path, *path.parents):
            with suppress(OSError, ValueError):
                return self.count_free_bytes(candidate)
        return None

    def find_program(self, name: str, folders: Sequence[str] = ()) -> str | None:
        """The path of a program, in PATH or in these folders."""
        searched = [*self.environ.get("PATH", "").split(":"), *folders]
        for folder in filter(None, searched):
            path = self.path(folder) / name
            with suppress(OSError, ValueError):
                if path.is_file() and os.access(path, os.X_OK):
                    return str(path)
        return None
