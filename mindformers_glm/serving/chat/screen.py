"""Where a chat reads lines and writes answers: a terminal, or plain streams."""

import sys
from collections.abc import Callable
from typing import Any, Protocol

from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.serving.live_text import SHOWN_CONTROLS
from mindformers_glm.system.log import write_line
from mindformers_glm.tokenizer.tool_call import ToolCall


class Screen(Protocol):
    """The user's side of a chat.

    is_terminal: whether somebody sits there, who stops an answer by Ctrl-C and goes on.
    """

    is_terminal: bool

    def read_line(self, question: str) -> str:
        """The next line. Raises EOFError at the end, KeyboardInterrupt where it was given up."""
        ...

    def show_thought(self, text: str) -> None:
        """Write a piece of the thoughts before an answer."""
        ...

    def show_text(self, text: str) -> None:
        """Write a piece of an answer."""
        ...

    def show_call(self, call: ToolCall) -> None:
        """Write a call of a tool, whole."""
        ...

    def end_answer(self) -> None:
        """Go to the start of a line."""
        ...

    def tell(self, line: str) -> None:
        """Write what is not the model's."""
        ...


class PlainScreen:
    """Answers on stdout as they come, all else on stderr; each line of stdin is a turn."""

    is_terminal = False

    def __init__(self) -> None:
        self._open_stream: Any = None  # the one whose line is not ended

    def read_line(self, question: str) -> str:
        """The next line of stdin."""
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as problem:
            raise PromptError(f"stdin is not UTF-8 text: {problem.reason}.") from None
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def show_thought(self, text: str) -> None:
        """Write to stderr."""
        self._write(sys.stderr, text)

    def show_text(self, text: str) -> None:
        """Write to stdout."""
        self._write(sys.stdout, text)

    def show_call(self, call: ToolCall) -> None:
        """Write a line to stdout."""
        self.end_answer()
        print(f"{call.name} {call.arguments}", flush=True)

    def end_answer(self) -> None:
        """End the line that is open."""
        if self._open_stream is not None:
            print(file=self._open_stream, flush=True)
            self._open_stream = None

    def tell(self, line: str) -> None:
        """Write to stderr."""
        write_line(line)

    def _write(self, stream: Any, text: str) -> None:
        if not text:
            return
        if stream is not self._open_stream:
            self.end_answer()
        stream.write(text)
        stream.flush()
        self._open_stream = None if text.endswith("\n") else stream


class TerminalScreen:
    """A terminal: lines with editing and history, thoughts and figures dim."""

    is_terminal = True

    def __init__(self, read: Callable[[str], str], console: Any) -> None:
        self._read, self._console = read, console
        self._style: str | None = None
        self._is_line_open = False

    @classmethod
    def open(cls) -> "TerminalScreen":
        """Take this process's terminal.

        Raises:
            ConfigError: prompt_toolkit or rich is not installed.
        """
        try:
            from prompt_toolkit import PromptSession
            from rich.console import Console
        except ModuleNotFoundError as problem:
            raise ConfigError(
                f"chat needs {problem.name} on a terminal: run pip install "
                "'mindformers_glm[chat]', or pip install -e '.[chat]' in the source folder."
            ) from None
        return cls(PromptSession().prompt, Console(highlight=False, markup=False, emoji=False))

    def read_line(self, question: str) -> str:
        """The next line that is typed; earlier ones come by the arrow keys."""
        return self._read(f"{question} ")

    def show_thought(self, text: str) -> None:
        """Write dim."""
        self._write(text, "dim")

    def show_text(self, text: str) -> None:
        """Write as it is; what would steer the terminal as its number."""
        self._write(text, None)

    def show_call(self, call: ToolCall) -> None:
        """Write a line of its own."""
        self.end_answer()
        self._write(f"{call.name} {call.arguments}\n", "cyan")

    def end_answer(self) -> None:
        """End the line that is open."""
        if self._is_line_open:
            self._console.out()
            self._is_line_open = False

    def tell(self, line: str) -> None:
        """Write a dim line."""
        self.end_answer()
        self._write(f"{line}\n", "dim")

    def _write(self, text: str, style: str | None) -> None:
        if not text:
            return
        if style != self._style:
            self.end_answer()
            self._style = style
        self._console.out(text.translate(SHOWN_CONTROLS), style=style, end="")
        self._console.file.flush()
        self._is_line_open = not text.endswith("\n")
