"""A terminal for programs to write to: what they wrote, when, and what stood on the screen."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = 80


@dataclass(frozen=True)
class TerminalRun:
    """A program that has ended.

    pieces: (seconds since its start, what it wrote then).
    peak_bytes: the most memory it held, as the system tells its parent.
    """

    exit_code: int
    pieces: list[tuple[float, str]]
    duration_s: float
    peak_bytes: int

    @property
    def text(self) -> str:
        """All it wrote."""
        return "".join(text for _, text in self.pieces)

    def time_of(self, text: str) -> float:
        """When the terminal first had all of a text."""
        so_far = ""
        for time_s, piece in self.pieces:
            so_far += piece
            if text in so_far:
                return time_s
        raise ValueError(f"{text!r} was never written, but {so_far!r}")


def run_in_terminal(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    columns: int = COLUMNS,
) -> TerminalRun:
    """Run a program whose stdin, stdout and stderr are one terminal, and wait for its end."""
    receiver, sender = pty.openpty()
    fcntl.ioctl(sender, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    started_s = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | dict(environ or {}),
        stdin=sender,
        stdout=sender,
        stderr=sender,
        start_new_session=True,
    )
    os.close(sender)
    pieces: list[tuple[float, str]] = []
    rest = b""
    while content := _read(receiver):
        content = rest + content
        text = content.decode("utf-8", "ignore")
        # The bytes of a character may come in two pieces.
        rest = content[len(text.encode("utf-8")) :]
        pieces.append((time.perf_counter() - started_s, text))
    os.close(receiver)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    duration_s = time.perf_counter() - started_s
    return TerminalRun(process.returncode, pieces, duration_s, usage.ru_maxrss * 1024)


def _read(file: int) -> bytes:
    try:
        return os.read(file, 1 << 16)
    except OSError:  # nobody has the terminal open any more
        return b""


class Screen:
    """The lines of a terminal, as far as plain text and progress bars move its cursor."""

    def __init__(self, columns: int = COLUMNS) -> None:
        self._columns = columns
        self._lines: list[list[str]] = [[]]
        self._column = 0

    def write(self, text: str) -> None:
        """Take what a program has written."""
        for character in text:
            if character == "\r":
                self._column = 0
            elif character == "\n":
                self._lines.append([])
            else:
                self._put(character)

    @property
    def lines(self) -> list[str]:
        """What stands there, without blanks at the ends of lines."""
        return ["".join(line).rstrip() for line in self._lines]

    def _put(self, character: str) -> None:
        width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if self._column + width > self._columns:
            self._lines.append([])
            self._column = 0
        line = self._lines[-1]
        line += [" "] * (self._column - len(line))
        # The second cell of a wide character is empty.
        line[self._column : self._column + width] = [character, ""][:width]
        self._column += width
