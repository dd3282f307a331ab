"""Write the answers to a file that is either whole or not there."""

import errno
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path

from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.system.log import note
from mindformers_glm.system.new_file import new_file

# As upstream writes its result file (mindformers 1.7.0, FILE_PERMISSION): of a new file, and of one
# that takes the place of another user's.
_FILE_MODE = 0o640
_MOST_LINKS = 40  # on the way to a file, as the kernel has it
_claims: dict[str, socket.socket] = {}  # held until the process ends


def check_place(path: Path) -> None:
    """Find out before the long work whether `write_atomically(path, ...)` can work.

    Raises:
        ConfigError: the folder is missing or cannot be written to, `path` is no plain file, or
            another user's link leads there.
    """
    target = _target(path)
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or pipe"
        raise ConfigError(f"save_file {path} is {kind}: give the name of a file.")
    if not target.parent.is_dir():
        raise ConfigError(f"The folder of save_file {path} does not exist: create it first.")
    if target.exists() and not os.access(target, os.W_OK):
        raise ConfigError(f"Cannot write save_file {path}: it is read-only.")
    try:
        # Trying is the only test that holds for read-only mounts, quotas and root alike.
        _create_beside(target).unlink(missing_ok=True)  # as abandoned by another run
    except OSError as problem:
        raise ConfigError(f"Cannot write save_file {path}: {problem.strerror}.") from None
    if not _claim(target):
        note(
            f"another run writes to {path} too, and the last one to write is kept: --save_file "
            "gives each a file of its own"
        )


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`; readers see the old content or the whole new one.

    A file of this user keeps its mode.

    Raises:
        ConfigError: another user's link leads there.
        GlmError: it cannot be written, e.g. because the disk is full. Nothing is left behind then.
    """
    target = _target(path)
    try:
        with new_file(target) as file:
            os.fchmod(file, _mode(target))
            with open(file, "w", encoding="utf-8", closefd=False) as stream:
                stream.write(text)
    except OSError as problem:
        raise GlmError(f"Cannot write save_file {path}: {problem.strerror}.") from None


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 text to a file that `write_atomically` has made: all of it, or nothing.

    Raises:
        GlmError: it cannot be written, e.g. because the disk is full.
    """
    content = text.encode("utf-8")
    try:
        file = os.open(_target(path), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            num_bytes = os.fstat(file).st_size
            if os.write(file, content) < len(content):
                os.truncate(file, num_bytes)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
    except OSError as problem:
        raise GlmError(f"Cannot write save_file {path}: {problem.strerror}.") from None


def _target(path: Path) -> Path:
    """The file itself where `path` is a link: replacing must not turn the link into a file.

    Raises:
        ConfigError: it cannot be found, or a link on the way is neither this user's nor root's.
    """
    try:
        return _follow(path)
    except OSError as problem:
        raise ConfigError(f"Cannot write save_file {path}: {problem.strerror}.") from None


def _follow(path: Path) -> Path:
    found, rest, num_links = Path("/"), list(reversed(path.absolute().parts)), 0
    while rest:
        step = found / rest.pop()
        if step.name == "..":
            found = found.parent
        elif not step.is_symlink():
            found = step
        else:
            num_links += 1
            if num_links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if step.lstat().st_uid not in (os.geteuid(), 0):
                raise ConfigError(
                    f"save_file {path} leads through {step}, a link of another user, and is not "
                    "followed: give the name of the file itself."
                )
            rest.extend(reversed((found / step.readlink()).parts))
            found = Path("/")
    return found


def _mode(target: Path) -> int:
    try:
        status = target.lstat()
    except FileNotFoundError:
        return _FILE_MODE
    is_own = status.st_uid == os.geteuid()
    return stat.S_IMODE(status.st_mode) & 0o777 if is_own else _FILE_MODE


def _claim(target: Path) -> bool:
    """Whether no other process of this machine has claimed the file.

    The claim is a socket's name in the system's abstract namespace, which leaves no file behind.
    """
    folder = target.parent.stat()
    place = f"{folder.st_dev} {folder.st_ino} {target.name}"
    name = f"\0mindformers_glm.result.{hashlib.sha256(os.fsencode(place)).hexdigest()}"
    if name in _claims:
        return True
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(name)
    except OSError as problem:
        claim.close()
        return problem.errno != errno.EADDRINUSE  # a system without such names tells nothing
    _claims[name] = claim
    return True


def _create_beside(target: Path) -> Path:
    """A new file in the same folder, named so that two runs at once never share one."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    return Path(name)
