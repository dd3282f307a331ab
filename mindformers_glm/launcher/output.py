"""The output of the processes: shown as it comes, and read again when one has failed."""

import errno
import fcntl
import os
import re
import selectors
import sys
import termios
import tty
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TextIO

from mindformers_glm.system.interrupts import INTERRUPTED

_NUM_LINES = 3
_LINE_LENGTH = 500
_TAIL_BYTES = 1 << 16
# "error: ..." of this project, "ValueError: ..." of a traceback, and what a crash leaves.
_ERROR = re.compile(
    r"error: |(\w+\.)*\w*(Error|Exception|Interrupt)\b|Fatal Python error|terminate called"
)
# MindSpore's log: "[ERROR] DISTRIBUTED(17700,...):2026-11-21-12:00:06.784 [file:83] Launch] text".
_MINDSPORE_ERROR = re.compile(
    r"\[(?:ERROR|CRITICAL)\] \w+\([^)]*\):\S+ \[[^\]]*\] (?:[^\]]*\] )?(.+)"
)
_CHATTER = re.compile(r"\[(DEBUG|INFO|WARNING)\]|-+$|\s*$")
_INTERRUPTED = re.compile(rf"^{INTERRUPTED}\n".encode(), re.MULTILINE)
# MindSpore 2.7.1 writes these two lines at the end of every process, whatever GLOG_v says.
_FAREWELL = re.compile(rb"^\[INFO\] DISTRIBUTED\(.*Event base dispatch success!\s*\n", re.MULTILINE)


class OutputRelay:
    """Copies what a process writes to our own stdout and stderr, and both to its log.

    Where ours are a terminal, the process gets one too, so that it shows there what it would show
    if it were started alone. One for both: then what it writes keeps its order.

    is_shown: False: nobody reads our output any more.
    is_ending: the job is being ended: nothing stops the copying now, which lets the process end in
        peace, and that it was interrupted is left to us to say.
    stdout, stderr: what the process is to be started with; closed by `begin`.
    """

    def __init__(self, log: Path) -> None:
        """`log` is the file of the process."""
        self.is_shown = True
        self.is_ending = False
        self._log = log.open("ab", buffering=0)
        self._selector = selectors.DefaultSelector()
        self._rests: dict[TextIO, bytes] = {}  # the beginning of a line that may not be for us
        self.stderr = self._open(sys.stderr)
        self.stdout = self.stderr
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            self.stdout = self._open(sys.stdout)

    def begin(self) -> None:
        """Call when the process is started: what it has not got nobody holds open."""
        for end in {self.stdout, self.stderr}:
            os.close(end)

    def forward(self, timeout_s: float) -> bool:
        """Copy what is there, waiting for it at most that long; False if there was nothing.

        Raises:
            BrokenPipeError: nobody reads our output any more.
            OSError: the log cannot be written. Neither where the job is being ended.
        """
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            data = _read(key.fd)
            if not data:
                self._selector.unregister(key.fileobj)
                self._show_rest(key.data)
                continue
            with nullcontext() if not self.is_ending else suppress(OSError):
                self._log.write(data)
            if self.is_shown:
                self._show(data, key.data)
        return bool(ready)

    def _show(self, data: bytes, ours: TextIO) -> None:
        data = _FAREWELL.sub(b"", self._rests.pop(ours, b"") + data)
        if self.is_ending:
            data = _INTERRUPTED.sub(b"", data)
            # A line may come in pieces, and Python writes its end apart.
            end = data.rfind(b"\n") + 1
            if data[end:] and f"{INTERRUPTED}\n".encode().startswith(data[end:]):
                data, self._rests[ours] = data[:end], data[end:]
        self._write(data, ours)

    def _show_rest(self, ours: TextIO) -> None:
        rest = self._rests.pop(ours, b"")
        if rest not in (b"", INTERRUPTED.encode()):
            self._write(rest, ours)

    def _write(self, data: bytes, ours: TextIO) -> None:
        try:
            ours.buffer.write(data)
            ours.buffer.flush()
        except OSError:
            if not self.is_ending:
                raise
            self.is_shown = False

    def _open(self, ours: TextIO) -> int:
        """Return the process's end of what is copied to a stream of ours."""
        receiver, sender = open_terminal_like(ours) if ours.isatty() else os.pipe()
        self._selector.register(receiver, selectors.EVENT_READ, ours)
        return sender


def open_terminal_like(ours: TextIO) -> tuple[int, int]:
    """Return the reader's and the writer's end of a terminal of our size that changes no byte."""
    receiver, sender = os.openpty()
    tty.setraw(sender)
    fcntl.ioctl(sender, termios.TIOCSWINSZ, fcntl.ioctl(ours, termios.TIOCGWINSZ, bytes(8)))
    return receiver, sender


def _read(file: int) -> bytes:
    """Return what there is; nothing at the end."""
    try:
        return os.read(file, _TAIL_BYTES)
    except OSError as problem:
        if problem.errno != errno.EIO:  # what a terminal says when nobody has it open any more
            raise
        return b""


def last_error_lines(log: Path) -> list[str]:
    """Return the last line that names an error, else the last lines that say anything."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    # A progress bar returns to the start of its line.
    lines = [line.rsplit("\r", 1)[-1].rstrip()[:_LINE_LENGTH] for line in text.split("\n")]
    errors = [line for line in lines if _ERROR.match(line)]
    errors = errors or [match[1] for line in lines if (match := _MINDSPORE_ERROR.match(line))]
    return errors[-1:] or [line for line in lines if not _CHATTER.match(line)][-_NUM_LINES:]
