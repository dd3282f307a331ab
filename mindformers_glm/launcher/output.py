"""The output of the processes: shown as it comes, and read again when one has failed."""

import os
import re
import selectors
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from mindformers_glm.launcher.child import Child

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
# MindSpore 2.7.1 writes these two lines at the end of every process, whatever GLOG_v says.
_FAREWELL = re.compile(rb"^\[INFO\] DISTRIBUTED\(.*Event base dispatch success!\s*\n", re.MULTILINE)


class OutputRelay:
    """Copies what a process writes to our own stdout and stderr, and both to its log."""

    def __init__(self, child: Child) -> None:
        """`child` was started with is_piped."""
        self.is_shown = True
        self._log = child.log.open("ab", buffering=0)
        self._selector = selectors.DefaultSelector()
        for pipe, ours in ((child.process.stdout, sys.stdout), (child.process.stderr, sys.stderr)):
            assert pipe is not None
            self._selector.register(pipe, selectors.EVENT_READ, ours)

    def forward(self, timeout_s: float) -> bool:
        """Copy what is there, waiting for it at most that long; False if there was nothing.

        Raises:
            BrokenPipeError: nobody reads our output any more.
            OSError: the log cannot be written. Not after the job's end (`is_shown` False), when
                reading on only lets the process end in peace.
        """
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            data = os.read(key.fd, _TAIL_BYTES)
            if not data:
                self._selector.unregister(key.fileobj)
                continue
            with nullcontext() if self.is_shown else suppress(OSError):
                self._log.write(data)
            if self.is_shown:
                key.data.buffer.write(_FAREWELL.sub(b"", data))
                key.data.buffer.flush()
        return bool(ready)


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
