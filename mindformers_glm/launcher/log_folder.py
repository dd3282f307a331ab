"""The folder of a job's logs, which no two running jobs share."""

import fcntl
from pathlib import Path
from typing import TextIO

from mindformers_glm.core.errors import ConfigError


class LogFolder:
    """A folder held until the end of the process.

    While another job writes to `folder`, the one with the port in its name is taken. The hosts of
    one job may share a folder: each has logs of its own ranks.
    """

    def __init__(self, folder: Path, port: int, node_rank: int) -> None:
        """Make the folder.

        Raises:
            ConfigError: it cannot be made or written to.
        """
        for path in (folder, folder.with_name(f"{folder.name}_{port}")):
            lock = self._lock(path, node_rank)
            if lock is not None:
                self.path = path
                self._held = lock
                return
        raise ConfigError(
            f"Running jobs write to the log folders {folder} and {path}: give another LOG_DIR."
        )

    @staticmethod
    def _lock(path: Path, node_rank: int) -> TextIO | None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / f".node_{node_rank}.lock").open("w")
        except OSError as problem:
            raise ConfigError(
                f"The log folder {path} cannot be written to: {problem.strerror}: give another "
                "LOG_DIR."
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock
