"""What the user is told while the program works: on stderr, since results go to stdout."""

import sys

_is_verbose = False


def set_verbose(is_verbose: bool) -> None:
    """Show `detail` lines too (the command line's --verbose)."""
    global _is_verbose
    _is_verbose = is_verbose


def note(message: str) -> None:
    """Tell the user one line that concerns them."""
    print(f"mindformers_glm: {message}", file=sys.stderr, flush=True)


def detail(message: str) -> None:
    """Tell the user one line that only someone who asked for it wants to read."""
    if _is_verbose:
        note(message)
