"""Keeps a second thread out of what only one may use at a time."""

import threading
from collections.abc import Callable
from types import TracebackType

from mindformers_glm.core.errors import UnsupportedError


class OneThread:
    """A `with` block of it refuses a thread while another one is in such a block.

    Waiting would hide that answers come one after the other, and a caller who waits for both could
    wait for ever. What ends a generator comes anywhere, also in the middle of a block of the same
    thread (the garbage collector's doing), and waits for its end: `run_when_free`.
    """

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        self._left: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        """Enter.

        Raises:
            UnsupportedError: another thread is inside.
        """
        with self._mutex:
            if not self._is_free():
                raise UnsupportedError(
                    "Another thread is using this LLM: call it from one thread at a time (a lock "
                    "of your own around the calls), and give it many prompts at once to have them "
                    "run together."
                )
            self._owner = threading.get_ident()
            self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._mutex:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                while self._left:
                    self._left.pop()()

    def run_when_free(self, action: Callable[[], None]) -> None:
        """Run it at once, or let the thread that is inside, even this one, do so on its way out."""
        with self._mutex:
            if self._depth == 0:
                action()
            else:
                self._left.append(action)

    def _is_free(self) -> bool:
        return self._owner in (None, threading.get_ident())
