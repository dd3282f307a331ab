"""Read what --predict_data gives: prompts, files of prompts, or stdin."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving.json_prompts import (
    Prompt,
    looks_like_json_lines,
    read_json_lines,
    read_json_list,
)
from mindformers_glm.system.log import note

STDIN = "-"
_FILE_SUFFIXES = (".txt", ".json", ".jsonl")
_PATH_BEGINNINGS = ("/", "./", "../", "~/")


def read_prompts(values: Sequence[str], *, has_stdin: bool = True) -> list[Prompt]:
    """The prompts in the values of --predict_data, in order.

    "-" is stdin. A value that names an existing file, or looks like a path, is a file: .jsonl holds
    a JSON object a line, .json a list of them, any other one prompt a line, unless it begins with
    such an object; so does stdin. The name of a folder is a prompt, unless it looks like a path. As
    in upstream's run_mindformer.py (mindformers 1.7.0), the two characters \\n stand for a new line
    in texts that are no JSON.

    Args:
        has_stdin: False for the processes of a launched job.
    Raises:
        ConfigError: no prompt at all, an empty prompt, or a file that cannot be read.
    """
    if not values:
        raise ConfigError(
            "There is no prompt: give --predict_data 'TEXT', or --predict_data FILE.txt with one "
            "prompt a line."
        )
    if list(values).count(STDIN) > 1:
        raise ConfigError("--predict_data names stdin (-) twice, and it can be read once.")
    prompts: list[Prompt] = []
    for value in values:
        if not value.strip():
            raise ConfigError("--predict_data holds an empty prompt: leave it out or fill it in.")
        path = Path(os.path.expanduser(value))
        if value == STDIN:
            prompts += _split(_read_stdin(has_stdin), "stdin")
        elif _looks_like_path(value) or _is_readable(path):
            prompts += _split(_read_file(path), f"the prompt file {path}", path.suffix.lower())
        else:
            prompts.append(_with_new_lines(_check_text(value)))
    return prompts


def _looks_like_path(value: str) -> bool:
    """Whether a value can only be meant as a path, be it there or not."""
    if value.lower().endswith(_FILE_SUFFIXES):
        return True
    return value.startswith(_PATH_BEGINNINGS) and not any(map(str.isspace, value))


def _is_readable(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()  # pipes are taken too: <(head -3 FILE)
    except (OSError, ValueError):  # a prompt can be too long, or hold bytes no name can
        return False


def _with_new_lines(prompt: str) -> str:
    return prompt.replace("\\n", "\n")


def _check_text(prompt: str) -> str:
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(
            f"The prompt {prompt!r} is not UTF-8 text: check the terminal's encoding."
        ) from None
    return prompt


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"The prompt file {path} does not exist (a value of --predict_data that ends in .txt, "
            ".json or .jsonl, or begins like a path and has no white space, is a file)."
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            f"--predict_data {path} is a folder: give a text file with one prompt a line."
        ) from None
    except (OSError, ValueError) as problem:
        raise ConfigError(f"Cannot read the prompt file {path}: {problem}.") from None


def _read_stdin(has_stdin: bool) -> bytes:
    if not has_stdin or sys.stdin is None:
        raise ConfigError(
            "--predict_data - reads stdin, and the processes of a launched job have none: give a "
            "file."
        )
    if sys.stdin.isatty():
        note("reading prompts from the keyboard, one a line; Ctrl-D ends them")
    return sys.stdin.buffer.read()


def _split(content: bytes, source: str, suffix: str = "") -> list[Prompt]:
    """The prompts in what was read from `source`, as messages call it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"{_capital(source)} is not UTF-8 text (byte {problem.start}): save it as UTF-8."
        ) from None
    if suffix == ".json":
        return read_json_list(text, source)
    # Not splitlines(): it also cuts at form feeds and the like, which belong to a prompt.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    filled = {number: line for number, line in enumerate(lines, start=1) if line.strip()}
    if not filled:
        raise ConfigError(f"{_capital(source)} is empty: write one prompt a line.")
    if len(filled) < len(lines):
        blank = [str(number) for number in range(1, len(lines) + 1) if number not in filled]
        numbers = ", ".join(blank[:5]) + (", ..." if len(blank) > 5 else "")
        lines_text = "line" if len(blank) == 1 else "lines"
        note(f"skipped {len(blank)} blank {lines_text} of {source}: {lines_text} {numbers}")
    first = next(iter(filled.values()))
    if suffix == ".jsonl" or (suffix != ".txt" and looks_like_json_lines(first)):
        return read_json_lines(filled, source)
    return [_with_new_lines(line) for line in filled.values()]


def _capital(source: str) -> str:
    return source[0].upper() + source[1:]
