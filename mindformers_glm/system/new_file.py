"""Files that appear whole or not at all, whatever happens to the process that writes them."""

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mindformers_glm.system.interrupts import delay_interrupts

# A file system without unnamed files answers with one of these (open(2), O_TMPFILE).
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_TOKEN = "[0-9a-f]{16}"


@contextmanager
def new_file(path: Path, mode: int = 0o666, kind: str = "") -> Iterator[int]:
    """Give a file descriptor to write to; when the block ends well, the file is `path`.

    Args:
        mode: who may do what with it, as far as the process's umask lets them.
        kind: end of the names of which abandoned files are removed, too; none: those of `path`.

    Until then it has no name, so that the system itself removes it when the process is killed.
    Where the file system cannot do that it has a temporary name; what a killed process leaves
    under one is removed by the next call.

    Raises:
        OSError: the folder is not writable, or the disk is full when the rest is written out.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = _temporary_name(path)
    try:
        _remove_abandoned(folder, f".*{re.escape(kind)}" if kind else re.escape(path.name))
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


def check_new_file(path: Path) -> None:
    """Try whether a file can get there, which is the only test that holds for root and quotas too.

    Raises:
        OSError: `new_file(path)` would fail, for its name or its folder.
    """
    temporary = path.with_name(_temporary_name(path))
    with delay_interrupts():
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        temporary.unlink(missing_ok=True)  # as abandoned by another run


def _temporary_name(path: Path) -> str:
    """A name that another user of the folder cannot take beforehand (_TOKEN)."""
    return f".{path.name}.{secrets.token_hex(8)}.tmp"


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


def _remove_abandoned(folder: int, names: str) -> None:
    """Remove one's own temporary files whose writer, and so its lock, is gone.

    Args:
        names: of the files that they were to become, as a regular expression.
    """
    temporary = re.compile(rf"\.{names}\.{_TOKEN}\.tmp", re.DOTALL)
    for name in os.listdir(folder):
        if temporary.fullmatch(name) is None:
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
