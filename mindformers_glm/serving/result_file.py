"""Write the answers to a file that is either whole or not there."""

import os
import tempfile
from pathlib import Path

from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.system.new_file import new_file

_FILE_MODE = 0o640  # as upstream writes its result file (mindformers 1.7.0, FILE_PERMISSION)


def check_place(path: Path) -> None:
    """Find out before the long work whether `write_atomically(path, ...)` can work.

    Raises:
        ConfigError: the folder is missing or cannot be written to, or `path` is no plain file.
    """
    target = _target(path)
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or pipe"
        raise ConfigError(f"save_file {path} is {kind}: give the name of a file.")
    if not target.parent.is_dir():
        raise ConfigError(f"The folder of save_file {path} does not exist: create it first.")
    try:
        # Trying is the only test that holds for read-only mounts, quotas and root alike.
        _create_beside(target).unlink(missing_ok=True)  # as abandoned by another run
    except OSError as problem:
        raise ConfigError(f"Cannot write save_file {path}: {problem.strerror}.") from None


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`; readers see the old content or the whole new one.

    Raises:
        GlmError: it cannot be written, e.g. because the disk is full. Nothing is left behind then.
    """
    target = _target(path)
    try:
        with new_file(target) as file:
            os.fchmod(file, _FILE_MODE)
            with open(file, "w", encoding="utf-8", closefd=False) as stream:
                stream.write(text)
    except OSError as problem:
        raise GlmError(f"Cannot write save_file {path}: {problem.strerror}.") from None


def _target(path: Path) -> Path:
    """The file itself where `path` is a link: replacing must not turn the link into a file."""
    return path.resolve()


def _create_beside(target: Path) -> Path:
    """A new file in the same folder, named so that two runs at once never share one."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    return Path(name)
