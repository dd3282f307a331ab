"""Text that may be a tool call, read until it is certain whether it is one."""

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Literal

from mindformers_glm.tokenizer.replies.json_writer import JsonWriter
from mindformers_glm.tokenizer.replies.lenient_json import escape_raw_characters, to_strict_json
from mindformers_glm.tokenizer.tool_call import ToolCall, read_json, write_json

Verdict = Literal["open", "call", "text"]
# Behind the name of an offered tool on a line of its own, so many characters of JSON are arguments:
# they need not wait for their end. Shorter ones come when they are complete, and may still be text.
_CERTAIN_AT = 200


class CallCandidate(ABC):
    """Takes text from where a call may begin.

    `feed` and `finish` say what it is: "open" while that is not certain, "call" with `call` set and
    what follows it in `rest`, "text" if it is none; all of `text` is the caller's then.

    Args:
        tool_names: tools that may be called.
        text_tool_names: those of them that take plain text instead of arguments.
        bare_names: those of them that the name alone calls, if nothing else is in the message.
    """

    def __init__(
        self,
        tool_names: Collection[str],
        text_tool_names: Collection[str] = (),
        bare_names: Collection[str] = (),
    ) -> None:
        self.text = ""
        self.call: ToolCall | None = None
        self.rest = ""
        # The name, and the arguments so far, of what is certainly a call though it is still open.
        self.begun: tuple[str, str] | None = None
        self._tool_names = tool_names
        self._text_tool_names = text_tool_names
        self._bare_names = bare_names

    def feed(self, piece: str) -> Verdict:
        """Take the next piece of text."""
        self.text += piece
        return self._judge(is_finished=False)

    def finish(self, *, is_complete: bool) -> Verdict:
        """Judge what is there: no more text belongs to this message. Never "open".

        Args:
            is_complete: the model has ended it; else it may only be the beginning of one.
        """
        verdict = self._judge(is_finished=True)
        name = self.text.strip()
        if verdict == "open" and is_complete and name in self._bare_names:
            return self._accept(name, "{}", len(self.text))
        return "text" if verdict == "open" else verdict

    @abstractmethod
    def _judge(self, *, is_finished: bool) -> Verdict: ...

    def _accept(self, name: str, arguments: str, end: int, *, is_open: bool = False) -> Verdict:
        self.call = ToolCall(name, arguments, is_open=is_open)
        self.rest = self.text[end:]
        return "call"


class _NamedCall(CallCandidate):
    """A call whose first line is the name of the tool."""

    def __init__(self, *names: Collection[str]) -> None:
        super().__init__(*names)
        self._name = ""
        self._body_start = 0  # 0 until the first line is complete and a name

    def _judge(self, *, is_finished: bool) -> Verdict:
        if not self._body_start:
            line, newline, _ = self.text.partition("\n")
            name = line.rstrip(" \r")
            if newline and name in self._tool_names:
                self._name, self._body_start = name, len(line) + 1
            elif newline or not self._may_name_a_tool(line):
                return "text"
        return self._judge_body(is_finished) if self._body_start else "open"

    @abstractmethod
    def _judge_body(self, is_finished: bool) -> Verdict: ...

    def _may_name_a_tool(self, beginning: str) -> bool:
        name = beginning.rstrip(" \r")
        if name != beginning:
            return name in self._tool_names
        return any(tool.startswith(name) for tool in self._tool_names)


class NamedJsonCall(_NamedCall):
    """GLM-4: the name, then a JSON object on the next line; a text tool's text ends the message."""

    def __init__(self, *names: Collection[str]) -> None:
        super().__init__(*names)
        self._object = _ObjectEnd()
        self._writer = JsonWriter()
        self._num_read = 0  # characters of the text that the writer has

    def _judge_body(self, is_finished: bool) -> Verdict:
        if self._name in self._text_tool_names:
            body = self.text[self._body_start :] if is_finished else ""
            return self._accept(self._name, write_json(body), len(self.text)) if body else "open"
        end = self._object.find(self.text, self._body_start)
        self._write(end if isinstance(end, int) else len(self.text))
        is_long = len(self._writer.written) >= _CERTAIN_AT
        if is_long:
            # What cannot be read any more is told as it is: the call has begun.
            arguments = self._writer.written + self._writer.unread
            if isinstance(end, int):
                return self._accept(self._name, arguments, end)
            if is_finished:
                return self._accept(self._name, arguments, len(self.text), is_open=True)
            self.begun = (self._name, self._writer.written)
            return "open"
        if not isinstance(end, int):
            return end
        try:
            arguments = to_strict_json(self.text[self._body_start : end].strip())
        except ValueError:
            return "text"
        return self._accept(self._name, arguments, end)

    def _write(self, end: int) -> None:
        """Read the arguments up to a place, without the blanks before them."""
        start = max(self._num_read, self._body_start)
        piece = self.text[start:end]
        if not self._num_read:
            piece = piece.lstrip()
        if piece:
            self._writer.feed(piece)
            self._num_read = end


class JsonObjectCall(CallCandidate):
    """GLM-Z1-Rumination: {"name": ..., "arguments": {...}}; arguments may be missing, or a text."""

    def __init__(self, *names: Collection[str]) -> None:
        super().__init__(*names)
        self._object = _ObjectEnd()

    def _judge(self, *, is_finished: bool) -> Verdict:
        end = self._object.find(self.text, 0)
        if not isinstance(end, int):
            return end
        try:
            call = read_json(to_strict_json(self.text[:end]))
            arguments = call.get("arguments")
            if isinstance(arguments, str):
                arguments = read_json(arguments)
            arguments = {} if arguments is None else arguments
            written = write_json(arguments)
        except ValueError:
            return "text"
        is_call = (
            {"name"} <= call.keys() <= {"name", "arguments"}
            and isinstance(arguments, dict)
            and isinstance(call["name"], str)
            and call["name"] in self._tool_names
        )
        return self._accept(call["name"], written, end) if is_call else "text"


class PythonCall(_NamedCall):
    """ChatGLM3: the name, then `tool_call(...)` in a block of Python. It is read, never run."""

    _FENCE = "```python"
    # Each closing fence costs reading the code before it.
    _MAX_CLOSING_FENCES = 20

    def __init__(self, *names: Collection[str]) -> None:
        super().__init__(*names)
        self._code_start = 0  # 0 until the opening fence is there
        self._searched = 0  # no closing fence begins before this place
        self._num_closing_fences = 0

    def _judge_body(self, is_finished: bool) -> Verdict:
        if not self._code_start:
            fence, newline, _ = self.text[self._body_start :].partition("\n")
            if not newline and self._FENCE.startswith(fence.strip(" \r")):
                return "open"
            if fence.strip(" \r") != self._FENCE:
                return "text"
            self._searched = self._code_start = self._body_start + len(fence) + 1
        # A fence may stand in an argument, too: the first that leaves a call is the closing one.
        while (fence_at := self.text.find("```", self._searched)) >= 0:
            self._searched = fence_at + 3
            if not self._may_close(fence_at):
                continue
            self._num_closing_fences += 1
            if self._num_closing_fences > self._MAX_CLOSING_FENCES:
                return "text"
            arguments = _read_python_call(self.text[self._code_start : fence_at])
            if arguments is not None:
                return self._accept(self._name, arguments, fence_at + 3)
        self._searched = max(self._searched, len(self.text) - 2)
        arguments = _read_python_call(self.text[self._code_start :]) if is_finished else None
        if arguments is None:
            return "open"
        return self._accept(self._name, arguments, len(self.text))

    def _may_close(self, fence_at: int) -> bool:
        """Whether a fence stands at the beginning of a line or behind the call, over blanks."""
        place = fence_at - 1
        while self.text[place] in " \t":  # ends at the newline behind the opening fence
            place -= 1
        return self.text[place] in "\n)"


class _ObjectEnd:
    """Finds the end of a JSON object in a growing text, looking at each character once."""

    _MARKS = re.compile(r"""[{}\[\]"']""")
    _IN_STRING: ClassVar = {quote: re.compile(rf"[{quote}\\]") for quote in "\"'"}
    # Deeper ones are nobody's arguments, and Python reads them by recursion.
    _MAX_DEPTH = 100

    def __init__(self) -> None:
        self._place = -1
        self._depth = 0
        self._quote = ""  # of the string under way

    def find(self, text: str, start: int) -> int | Literal["open", "text"]:
        """Return the place behind the object that begins at or after `start`, over blanks.

        "open": the text ends before it does; "text": there is none.
        """
        if self._place < 0:
            stripped = text[start:].lstrip()
            if not stripped.startswith("{"):
                return "text" if stripped else "open"
            self._place = len(text) - len(stripped)
        while True:
            pattern = self._IN_STRING[self._quote] if self._quote else self._MARKS
            mark = pattern.search(text, self._place)
            if mark is None:
                self._place = len(text)
                return "open"
            if mark[0] == "\\" and mark.end() == len(text):
                self._place = mark.start()
                return "open"
            self._place = mark.end() + (mark[0] == "\\")
            self._count(mark[0])
            if self._depth > self._MAX_DEPTH:
                return "text"
            if self._depth <= 0 and not self._quote:
                return self._place

    def _count(self, mark: str) -> None:
        if mark in ('"', "'"):
            self._quote = "" if self._quote else mark
        elif mark != "\\":
            self._depth += 1 if mark in "{[" else -1


def _read_python_call(code: str) -> str | None:
    """Return the arguments of `tool_call(a=..., b=...)` as JSON; None: it is nothing like that.

    Raw control characters in its strings are read, too.
    """
    arguments = _read_strict_python_call(code)
    if arguments is None and (mended := escape_raw_characters(code)) != code:
        arguments = _read_strict_python_call(mended)
    return arguments


def _read_strict_python_call(code: str) -> str | None:
    try:
        call = ast.parse(code.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            return None
        if call.func.id != "tool_call" or call.args:
            return None
        arguments: dict[str, Any] = {}
        for keyword in call.keywords:
            if keyword.arg is None:
                return None
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        return write_json(arguments)
    # What ast says of text that is no Python, or of numbers and nesting beyond its limits.
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
