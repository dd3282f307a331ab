"""`mindformers-glm cache`: list, verify and remove the packed caches that loading leaves."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindformers_glm.config.environment import packed_cache_folder
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.sizes import format_bytes
from mindformers_glm.weights.packed_cache import FOLDER_NAME, describe_format, list_caches
from mindformers_glm.weights.packed_file import verify_file
from mindformers_glm.weights.packed_header import PackedFileError, PackedHeader

_Caches = Sequence[tuple[Path, PackedHeader | PackedFileError]]
_USAGE = "mindformers-glm cache list|verify|clear [DIR ...]"


def add_arguments(parser: SentenceParser) -> None:
    """Add action and folders."""
    parser.sentence = f"cache takes an action and folders: {_USAGE}"
    parser.add_argument("action", choices=_ACTIONS)
    parser.add_argument("folders", nargs="*", metavar="DIR", help="a checkpoint, or its caches")


def run(arguments: argparse.Namespace) -> int:
    """Do what `cache ACTION [DIR ...]` asks for.

    A DIR is a checkpoint or a folder of caches; without one it is what MINDFORMERS_GLM_CACHE names.

    Returns:
        The exit code: 1 if a file is not used and was not removed, else 0.
    Raises:
        ConfigError: no folder is given, or one is not there.
    """
    folders = [_find_folder(name) for name in arguments.folders]
    if not folders:
        if (folder := packed_cache_folder()) is None:
            raise ConfigError(
                "MINDFORMERS_GLM_CACHE is not set, so caches lie beside their checkpoints: give "
                f"the checkpoint's folder, {_USAGE}."
            )
        folders = [folder]
    folders = list(dict.fromkeys(folders))
    caches = [cache for folder in folders for cache in list_caches(folder)]
    if not caches:
        print(f"no packed cache in {', '.join(map(str, folders))}")
    return _ACTIONS[arguments.action](caches)


def _find_folder(name: str) -> Path:
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: give a checkpoint's or a cache's folder.")
    beside = folder / FOLDER_NAME
    return beside if beside.is_dir() else folder


def _list(caches: _Caches) -> int:
    for file, header in caches:
        print(file)
        for name, value in _describe(file, header):
            print(f"  {name:<12}{value}")
    return int(any(isinstance(header, PackedFileError) for _, header in caches))


def _describe(file: Path, header: PackedHeader | PackedFileError) -> Iterator[tuple[str, str]]:
    if isinstance(header, PackedFileError):
        yield "state", f"not used, {header}: the next start that needs it replaces it"
    else:
        yield "checkpoint", header.source
        settings = describe_format(header.key["format"])
        yield "format", ", ".join(f"{name} {value}" for name, value in settings.items())
    try:
        stat = file.lstat()
    except OSError:  # removed meanwhile, say
        return
    yield "size", format_bytes(stat.st_size)
    yield "written", time.strftime("%Y-%m-%d %H:%M", time.localtime(stat.st_mtime))


def _verify(caches: _Caches) -> int:
    exit_code = 0
    for file, _ in caches:
        try:
            verify_file(file)
            print(f"{file}: sound")
        except (PackedFileError, FileNotFoundError) as problem:
            reason = problem if isinstance(problem, PackedFileError) else "it was removed"
            print(f"{file}: {reason}")
            exit_code = 1
    return exit_code


def _clear(caches: _Caches) -> int:
    exit_code = 0
    for file, _ in caches:
        try:
            num_bytes = file.lstat().st_size
            file.unlink()
        except FileNotFoundError:
            continue
        except OSError as problem:
            print(f"{file}: it cannot be removed: {problem.strerror}")
            exit_code = 1
            continue
        print(f"removed {file} ({format_bytes(num_bytes)})")
    return exit_code


_ACTIONS = {"list": _list, "verify": _verify, "clear": _clear}
