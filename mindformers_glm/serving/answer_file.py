"""The file that finished answers go to as they come: upstream's text, JSON, or JSON lines."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mindformers_glm.core.errors import GlmError
from mindformers_glm.engine.request_output import FinishReason
from mindformers_glm.serving.json_prompts import Prompt
from mindformers_glm.serving.result_file import FileState, append_text, write_atomically

# Of the time, that a whole file may cost that is written anew for every answer.
_WRITING_SHARE = 0.02
# Many programs take these for the end of a line (str.splitlines); JSON allows them in texts.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


class FinishedOutput(Protocol):
    """What of a finished answer is written; a RequestOutput has it."""

    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def prompt_token_ids(self) -> Sequence[int]: ...
    @property
    def token_ids(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class _Format:
    """How an answer is written, and the whole file."""

    write_entry: Callable[[int, Prompt, FinishedOutput], str]
    write_file: Callable[[Iterable[str]], str]
    is_appended: bool = False


def as_result(output: FinishedOutput) -> dict[str, Any]:
    """One prompt's entry in upstream's format; `error` only where it failed."""
    result: dict[str, Any] = {"text_generation_text": [output.text]}
    if output.finish_reason == "error":
        result["error"] = output.error
    return result


def _as_json(index: int, prompt: Prompt, output: FinishedOutput) -> str:
    """One prompt's entry in a .json or .jsonl file; `index` counts from 0."""
    entry = {
        "index": index,
        ("prompt" if isinstance(prompt, str) else "messages"): prompt,
        "text": output.text,
        "finish_reason": output.finish_reason,
        "prompt_tokens": len(output.prompt_token_ids),
        "completion_tokens": len(output.token_ids),
        "error": output.error,
    }
    return json.dumps(entry, ensure_ascii=False).translate(_LINE_ENDS)


_UPSTREAM = _Format(
    lambda index, prompt, output: str(as_result(output)),
    lambda entries: f"[{', '.join(entries)}]",
)
_FORMATS = {
    ".json": _Format(_as_json, lambda entries: "[\n" + ",\n".join(entries) + "\n]\n"),
    ".jsonl": _Format(
        _as_json, lambda entries: "".join(f"{entry}\n" for entry in entries), is_appended=True
    ),
}


class AnswerFile:
    """Holds, whole at each moment, the finished answers in the order of their prompts.

    What was there before stays until the first answer. A .jsonl file gets a line for each answer as
    it is finished, and the order of the prompts when it is closed. A whole file is not written more
    often than fits into 2 % of the time: then the newest answers are there a little later.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`path` has been checked; its suffix decides how it is written."""
        self._path = path
        self._format = _FORMATS.get(path.suffix.lower(), _UPSTREAM)
        self._clock = clock
        self._entries: dict[int, str] = {}
        self._written: list[int] = []  # which entries the file has, in its order
        self._state: FileState | None = None  # of the file as it was left
        self._not_before_s = 0.0

    def add(self, index: int, prompt: Prompt, output: FinishedOutput) -> None:
        """Take a finished answer. A file that cannot be written now is tried again later."""
        self._entries[index] = self._format.write_entry(index, prompt, output)
        try:
            if (
                self._format.is_appended
                and self._state is not None
                and len(self._written) == len(self._entries) - 1
            ):
                self._state = append_text(self._path, f"{self._entries[index]}\n", self._state)
                self._written.append(index)
            elif self._clock() >= self._not_before_s:
                self._write()
        except GlmError:
            self._not_before_s = self._clock() + 1  # `close` tells

    def close(self) -> None:
        """Bring the file up to date; it stays as it was where no answer is finished.

        Raises:
            GlmError: it cannot be written.
        """
        if self._written != sorted(self._entries):
            self._write()

    def _write(self) -> None:
        started_s = self._clock()
        order = sorted(self._entries)
        text = self._format.write_file(self._entries[i] for i in order)
        self._state = write_atomically(self._path, text)
        self._written = order
        ended_s = self._clock()
        self._not_before_s = ended_s + (ended_s - started_s) / _WRITING_SHARE
