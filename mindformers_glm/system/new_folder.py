"""Folders that appear whole or not at all, whatever happens to the process that fills them."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; when the block ends well, it is called `path`.

    Until then it has a temporary name beside it. An error removes it; what a killed process leaves
    is removed by the next call for the same path.

    Raises:
        OSError: the parent folder is not writable, or `path` exists and is not empty.
    """
    _remove_abandoned(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.mkdir()
    lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # says that the temporary name is in use
        yield temporary
        os.fsync(lock)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _remove_abandoned(path: Path) -> None:
    for folder in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
