"""stdin, stdout and stderr where the caller has closed one (`>&-`), or nobody reads it."""

import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def open_closed_streams() -> None:
    """Give what is closed a place, or the next file that is opened takes its number.

    What libraries print would stand in that file. sys.stdin stays None.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Takes the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  for good
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


@contextmanager
def native_stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what libraries print on stdout meanwhile, past Python."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def drop_stdout() -> None:
    """Let what is left to write vanish, or Python tries again at exit and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def keep_terminal() -> Callable[[], None]:
    """Return what sets the terminal of stdin back to how it reads now; nothing where it is none."""
    try:
        kept = termios.tcgetattr(0)
    except (termios.error, OSError):
        return lambda: None

    def restore() -> None:
        with suppress(termios.error, OSError):  # it is gone
            termios.tcsetattr(0, termios.TCSADRAIN, kept)

    return restore
