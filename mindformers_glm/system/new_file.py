"""Files that appear whole or not at all, whatever happens to the process that writes them."""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A file system without unnamed files answers with one of these (open(2), O_TMPFILE).
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


@contextmanager
def new_file(path: Path, mode: int = 0o666, kind: str = "") -> Iterator[int]:
    """Give a file descriptor to write to; when the block ends well, the file is `path`.

    Args:
        mode: who may do what with it, as far as the process's umask lets them.
        kind: part of the names of which abandoned files are removed, too; none: those of `path`.

    Until then it has no name, so that the system itself removes it when the process is killed.
    Where the file system cannot do that it has a temporary name; what a killed process leaves
    under one is removed by the next call.

    Raises:
        OSError: the folder is not writable, or the disk is full when the rest is written out.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # A name that another user of the folder cannot take beforehand.
    temporary = f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        _remove_abandoned(folder, kind or f".{path.name}.")
        file, is_named = _create(folder, temporary, mode)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # says that the temporary name is in use
            yield file
            os.fsync(file)
            if not is_named:
                # dst_dir_fd makes Python call linkat(2), which follows the link in /proc.
                os.link(f"/proc/self/fd/{file}", temporary, dst_dir_fd=folder, follow_symlinks=True)
                is_named = True
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            is_named = False
            os.fsync(folder)
        finally:
            if is_named:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
            os.close(file)
    finally:
        os.close(folder)


def _create(folder: int, temporary: str, mode: int) -> tuple[int, bool]:
    """Return the descriptor, and whether the file has the temporary name."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(".", flags | os.O_TMPFILE, mode, dir_fd=folder), False
    except OSError as problem:
        if problem.errno not in _NO_UNNAMED_FILES:
            raise
    flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.open(temporary, flags, mode, dir_fd=folder), True


def _remove_abandoned(folder: int, part: str) -> None:
    """Remove one's own temporary files whose writer, and so its lock, is gone.

    Args:
        part: of their names, which begin with a dot and end in .tmp.
    """
    for name in os.listdir(folder):
        if not (name.startswith(".") and part in name and name.endswith(".tmp")):
            continue
        with suppress(OSError):  # gone by now, or in use
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
            file = os.open(name, flags, dir_fd=folder)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=folder)
            finally:
                os.close(file)
