"""Read the small JSON files of a checkpoint folder; whatever is wrong becomes one sentence."""

import json
from pathlib import Path
from typing import Any

LFS_MAGIC = b"version https://git-lfs"


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


def read_file(path: Path, error: type[Exception]) -> bytes:
    """Read a whole file.

    Raises:
        error: it is missing, unreadable, or a Git-LFS pointer.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} does not exist: download the complete model folder again.") from None
    except OSError as problem:
        raise error(f"Cannot read {path}: {problem.strerror}.") from None
    if content.startswith(LFS_MAGIC):
        raise error(lfs_pointer_message(path))
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
    content = read_file(path, error)
    try:
        parsed = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:  # a bad UTF-8 byte is a ValueError too
        raise error(f"{path} is not valid JSON ({problem}): {advice}.") from None
    if not isinstance(parsed, dict):
        raise error(
            f"{path} must hold a JSON object, it holds a {type(parsed).__name__}: {advice}."
        )
    return parsed


def lfs_pointer_message(path: Path) -> str:
    """Say that `path` is what git leaves behind when it is cloned without Git-LFS."""
    return (
        f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in {path.parent} "
        "or download the file again."
    )
