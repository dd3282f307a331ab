"""What rank 0 says of signals: whether they are its own business, which it then ends the job by.

A line on a pipe, whose number is in the environment of rank 0:
"ends S": SIGINT and SIGTERM ask it to end, which it does, and with it all ranks, within S seconds;
"interrupts": SIGINT stops what it is doing, and it goes on.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from mindformers_glm.config.launched import PIPE_VARIABLE

_MARGIN_S = 15.0  # for the other ranks to end
_MAX_ASKED = 2  # what asks for an end: in order, at once; then the launcher does it
_MAX_BYTES = 4096


class RankWishes:
    """The launcher's end of the pipe.

    Attributes:
        sender: the end that rank 0 inherits; closed by `begin`.
    """

    def __init__(self) -> None:
        self._receiver, self.sender = os.pipe()
        os.set_blocking(self._receiver, False)
        self._said = b""
        self._patience_s: float | None = None
        self._is_interrupted = False
        self._num_asked = 0
        self._end_s: float | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What rank 0 finds the pipe by."""
        return {PIPE_VARIABLE: str(self.sender)}

    def begin(self) -> None:
        """Call when rank 0 is started."""
        os.close(self.sender)

    @property
    def is_server(self) -> bool:
        """Whether rank 0 ends the job when it is asked to."""
        self._read()
        return self._patience_s is not None

    @property
    def is_late(self) -> bool:
        """Whether it was asked to, and the time it wanted is over."""
        return self._end_s is not None and time.monotonic() > self._end_s

    def takes(self, number: int) -> bool:
        """Whether a signal that the launcher has got is to be handed on to rank 0."""
        if self.is_server and number in (signal.SIGINT, signal.SIGTERM):
            self._num_asked += 1
            if self._end_s is None:
                self._end_s = time.monotonic() + (self._patience_s or 0.0) + _MARGIN_S
            return self._num_asked <= _MAX_ASKED
        return self._is_interrupted and number == signal.SIGINT

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while len(self._said) < _MAX_BYTES and (said := os.read(self._receiver, _MAX_BYTES)):
                self._said += said
        for line in self._said.decode("ascii", "replace").splitlines():
            self._obey(line.split())

    def _obey(self, words: Sequence[str]) -> None:
        if words == ["interrupts"]:
            self._is_interrupted = True
        elif words[:1] == ["ends"] and len(words) == 2:
            with suppress(ValueError):
                self._patience_s = float(words[1])
