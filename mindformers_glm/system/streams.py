"""stdin, stdout and stderr where the caller has closed one (`>&-`), or nobody reads it."""

import os
import sys


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


def drop_stdout() -> None:
    """Let what is left to write vanish, or Python tries again at exit and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
