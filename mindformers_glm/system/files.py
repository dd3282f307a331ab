"""Read the small files of a checkpoint folder; whatever is wrong becomes one sentence.

Nobody vouches for such a folder: what is read of it is bounded, so that it takes neither minutes
nor the machine's memory, and a pipe or a device in the place of a file does not stop the program.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

LFS_MAGIC = b"version https://git-lfs"
# Of JSON, which takes up to 25 times its bytes in memory; the index of a model of 700 B parameters
# has 9 MB.
MAX_JSON_BYTES = 16 * 2**20
_MAX_FILE_BYTES = 128 * 2**20  # a tokenizer.json has 20 MB
_MAX_DEPTH = 100  # Python's own limit is met by whoever shows or compares what was read
_MAX_DIGITS = 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def require_folder(folder: str | Path, error: type[Exception]) -> Path:
    """Return `folder` as a Path if it is a folder with something in it.

    Raises:
        error: it is no path, does not exist, is a file, is empty or cannot be listed.
    """
    if not isinstance(folder, str | Path):
        raise error(
            f"pretrained_model_dir must be the path of a Hugging Face folder, got {folder!r}."
        )
    path = Path(folder).expanduser()
    try:
        if not path.exists():
            raise error(
                f"The checkpoint folder {path} does not exist: give a Hugging Face folder as "
                "downloaded (config.json, *.safetensors, tokenizer files)."
            )
        if not path.is_dir():
            raise error(
                f"{path} is a file, not a checkpoint folder: give the folder of config.json."
            )
        if next(path.iterdir(), None) is None:
            raise error(f"The checkpoint folder {path} is empty: download the model into it first.")
    except OSError as problem:
        raise error(f"Cannot open the checkpoint folder {path}: {problem.strerror}.") from None
    return path


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, also through links, without waiting for anything.

    Raises:
        OSError: it cannot be read, or is no file: a folder, a pipe, a device.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:  # a NUL in the name
        raise OSError(errno.EINVAL, "it has no possible name") from None
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(file, "rb")
    os.close(file)
    problem = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "it is no ordinary file"
    raise OSError(errno.EISDIR, problem)


def read_file(path: Path, error: type[Exception], max_bytes: int = _MAX_FILE_BYTES) -> bytes:
    """Read a whole file.

    Raises:
        error: it is missing, unreadable, too large to be what it should be, or a Git-LFS pointer.
    """
    try:
        with open_file(path) as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise error(f"{path} does not exist: download the complete model folder again.") from None
    except OSError as problem:
        raise error(f"Cannot read {path}: {problem.strerror}.") from None
    if content.startswith(LFS_MAGIC):
        raise error(lfs_pointer_message(path))
    if len(content) > max_bytes:
        raise error(
            f"{path} has more than {max_bytes} bytes, which no such file needs: download it again."
        )
    return content


def read_json_if_present(path: Path, error: type[Exception]) -> dict[str, Any]:
    """As `read_json_object`; nothing where there is no such file."""
    return read_json_object(path, error) if path.exists() else {}


def read_json_object(
    path: Path, error: type[Exception], advice: str = "download the file again"
) -> dict[str, Any]:
    """Read a JSON file that must hold one object.

    Args:
        advice: what to do where it does not.
    Raises:
        error: the file is missing, unreadable, a Git-LFS pointer, not JSON, or not an object.
    """
    content = read_file(path, error, MAX_JSON_BYTES)
    try:
        parsed = parse_json(content.decode("utf-8-sig"))
    except ValueError as problem:  # a bad UTF-8 byte is one too
        raise error(f"{path} is not valid JSON ({problem}): {advice}.") from None
    if not isinstance(parsed, dict):
        raise error(
            f"{path} must hold a JSON object, it holds a {type(parsed).__name__}: {advice}."
        )
    return parsed


def parse_json(text: str, new_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Read JSON whose values can be shown, compared and computed with.

    Args:
        new_object: makes an object of its members; None: the last of each name counts.
    Raises:
        ValueError: it is no JSON, or no file of a model is nested so deeply or has such numbers.
    """
    try:
        parsed = json.loads(text, object_pairs_hook=new_object, parse_int=_read_int)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [parsed]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            break
    else:
        raise ValueError("it is nested too deeply")
    if _SURROGATE.search(text):
        json.dumps(parsed, ensure_ascii=False).encode()  # a ValueError where it is half a pair
    return parsed


def _read_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def lfs_pointer_message(path: Path) -> str:
    """Say that `path` is what git leaves behind when it is cloned without Git-LFS."""
    return (
        f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in {path.parent} "
        "or download the file again."
    )
