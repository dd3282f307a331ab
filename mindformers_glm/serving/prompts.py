"""Read what --predict_data gives: prompts, or a text file with one prompt a line."""

import os
from collections.abc import Sequence
from pathlib import Path

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.log import note


def read_prompts(values: Sequence[str]) -> list[str]:
    """The prompts in the values of --predict_data, in order.

    A value that names an existing file, or ends in .txt, is a file with one prompt a line; the name
    of a folder is a prompt. As in upstream's run_mindformer.py (mindformers 1.7.0), the two
    characters \\n stand for a new line.

    Raises:
        ConfigError: no prompt at all, an empty prompt, or a file that cannot be read.
    """
    if not values:
        raise ConfigError(
            "There is no prompt: give --predict_data 'TEXT', or --predict_data FILE.txt with one "
            "prompt a line."
        )
    prompts: list[str] = []
    for value in values:
        if not value.strip():
            raise ConfigError("--predict_data holds an empty prompt: leave it out or fill it in.")
        path = Path(os.path.expanduser(value))
        if value.lower().endswith(".txt") or _is_readable(path):
            prompts.extend(_read_file(path))
        else:
            prompts.append(_check_text(value))
    return [prompt.replace("\\n", "\n") for prompt in prompts]


def _is_readable(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()  # pipes are taken too: <(head -3 FILE)
    except (OSError, ValueError):  # a prompt can be too long, or hold bytes no name can
        return False


def _check_text(prompt: str) -> str:
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(
            f"The prompt {prompt!r} is not UTF-8 text: check the terminal's encoding."
        ) from None
    return prompt


def _read_file(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"The prompt file {path} does not exist (a value of --predict_data that ends in .txt "
            "is a file)."
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            f"--predict_data {path} is a folder: give a text file with one prompt a line."
        ) from None
    except (OSError, ValueError) as problem:
        raise ConfigError(f"Cannot read the prompt file {path}: {problem}.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"The prompt file {path} is not UTF-8 text (byte {problem.start}): save it as UTF-8."
        ) from None
    # Not splitlines(): it also cuts at form feeds and the like, which belong to a prompt.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if len(blank) == len(lines):
        raise ConfigError(f"The prompt file {path} is empty: write one prompt a line.")
    if blank:
        numbers = ", ".join(map(str, blank[:5])) + (", ..." if len(blank) > 5 else "")
        lines_text = "line" if len(blank) == 1 else "lines"
        note(f"skipped {len(blank)} blank {lines_text} of {path}: {lines_text} {numbers}")
    return [line for line in lines if line.strip()]
