"""The folder of a job's logs, which no two running jobs share."""

import fcntl
import re
from pathlib import Path
from typing import TextIO

from mindformers_glm.core.errors import ConfigError

_WORKER_LOG = re.compile(r"worker_\d+\.log")


class LogFolder:
    """A folder held until the end of the process.

    While another job writes to `folder`, one with the port in its name is taken. The hosts of one
    job may share a folder: each has logs of its own ranks. A job that runs on one host shares it
    with nobody and finds no ranks' logs of an earlier one.
    """

    def __init__(self, folder: Path, port: int, node_rank: int | None = None) -> None:
        """Make the folder.

        Args:
            node_rank: this host's number; None: the job has no other hosts.

        Raises:
            ConfigError: it cannot be made or written to.
        """
        self._node_rank = node_rank
        second = _second_folder(folder, port)
        for path in (folder, second):
            try:
                lock = self._lock(path)
                if lock is not None and node_rank is None:
                    _remove_logs(path)
            except OSError as problem:
                raise ConfigError(
                    f"The log folder {path} cannot be written to: {problem.strerror}: give another "
                    "LOG_DIR."
                ) from None
            if lock is not None:
                self.path = path
                self._held = lock
                return
        raise ConfigError(
            f"Running jobs write to the log folders {folder} and {second}: give another LOG_DIR."
        )

    def _lock(self, path: Path) -> TextIO | None:
        path.mkdir(parents=True, exist_ok=True)
        lock = _try_lock(path / f".node_{self._node_rank or 0}.lock")
        if lock is not None and self._node_rank is None:
            for other in path.glob(".node_*.lock"):
                if other.name == Path(lock.name).name:
                    continue
                if (released := _try_lock(other)) is None:
                    lock.close()
                    return None
                released.close()
        return lock


def _second_folder(folder: Path, port: int) -> Path:
    if folder.name in ("", ".."):  # "/", "." and "..": there is no name to append to
        return folder / f"msrun_log_{port}"
    return folder.with_name(f"{folder.name}_{port}")


def _try_lock(path: Path) -> TextIO | None:
    """Lock a file until it is closed; None where another process has done so."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _remove_logs(folder: Path) -> None:
    """Remove what an earlier job left, which may have had more ranks than the next."""
    for path in folder.iterdir():
        if _WORKER_LOG.fullmatch(path.name):
            path.unlink()
