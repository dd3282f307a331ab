"""What the user is told while the program works: on stderr, since results go to stdout."""

import sys
from contextlib import suppress

_is_verbose = False
_is_silent = False


def set_verbose(is_asked: bool) -> None:
    """Show `detail` lines too (the command line's --verbose)."""
    global _is_verbose
    _is_verbose = is_asked


def is_verbose() -> bool:
    """Whether details are shown."""
    return _is_verbose


def silence_other_ranks(rank: int) -> None:
    """Let only rank 0 of a launched job tell anything; errors are not told here."""
    global _is_silent
    _is_silent = rank > 0


def is_silent() -> bool:
    """Whether another rank tells what there is to tell."""
    return _is_silent


def note(message: str) -> None:
    """Tell the user one line that concerns them."""
    if _is_silent:
        return
    write_line(f"mindformers_glm: {message}")


def detail(message: str) -> None:
    """Tell the user one line that only someone who asked for it wants to read."""
    if _is_verbose:
        note(message)


def write_line(line: str) -> None:
    """Write to stderr; where nothing takes it, a full disk say, the work goes on without."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
