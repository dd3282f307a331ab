"""Ctrl-C: what a command makes of it, and where an exception in the middle would do harm."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
INTERRUPTED = "interrupted"
# While a graph runs, MindSpore 2.7.1 turns Ctrl-C (SIGINT) into SIGTERM.
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_new_folders: set[Path] = set()  # made by `new_folder`, under way


def on_interrupt(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Let both signals call a handler, for commands, which own their process."""
    for number in _INTERRUPTS:
        signal.signal(number, handler)


def raise_once(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Unwind, so that half-written files are removed; a second Ctrl-C must not disturb that."""
    on_interrupt(signal.SIG_IGN)
    raise KeyboardInterrupt


def exit_at_once(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Leave while modules are imported and weights are read, where nothing is written.

    An exception inside the import of a C extension comes out as something else, or as a crash.
    """
    _remove_new_folders()
    # Not sys.stderr: a download may have turned it away from the libraries' bars.
    with suppress(OSError):
        print(INTERRUPTED, file=sys.__stderr__, flush=True)
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder; one that is still empty when the block ends, however it does, is removed.

    Also where `exit_at_once` ends it. A folder that was there before stays.

    Raises:
        OSError: it cannot be made.
    """
    is_new = not folder.exists()
    if is_new:
        _new_folders.add(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        if is_new:
            _remove_new_folders()
            _new_folders.discard(folder)


def _remove_new_folders() -> None:
    for folder in list(_new_folders):
        with suppress(OSError):  # it holds something, or was not made yet
            folder.rmdir()


def leave_at_once(exit_code: int) -> NoReturn:
    """End this process with all that it has printed, but nothing else that runs at exit.

    For a rank of a split model that has failed: MindSpore waits for the other ranks on its way out,
    and they may wait for this one.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(exit_code)


@contextmanager
def leave_if_stuck(rescue: Callable[[], None], patience_s: float = 1.0) -> Iterator[None]:
    """After an interrupt, call `rescue` and leave if the block does not end by itself.

    For a rank of a split model: while it waits for one that is dead, no handler runs. Not nested,
    in the main thread.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    ended = threading.Event()

    def watch() -> None:
        if os.read(receiver, 1) and not ended.wait(patience_s):
            try:
                rescue()
            except Exception as problem:
                print(f"error: {problem}", file=sys.stderr)
            if not ended.wait(patience_s):
                leave_at_once(EXIT_INTERRUPTED)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    # Python's own handler writes a byte there, in whatever the main thread is.
    before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(sender)
        watcher.join()
        os.close(receiver)


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt while a graph runs.

    MindSpore 2.7.1 turns SIGINT into SIGTERM meanwhile, which ends a process that has no handler
    for it: a notebook would be gone. Where somebody has chosen a handler, that one stays.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def restore_interrupt_handler() -> None:
    """Put Python's handler of SIGINT back, which MindSpore 2.7.1 replaces while a network is made.

    Its own one turns SIGINT into SIGTERM, and Python does not know of it.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def delay_interrupts() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block has ended, then deliver the first of them.

    For MindSpore's graph compiler, which runs Python code: an exception there comes out as a page
    of C++ errors and leaves a dump (rank_0/om/analyze_fail.ir) behind. Outside the main thread the
    block just runs, since Python calls signal handlers in the main thread only.
    """
    # None is a handler that C code installed: Python could not put it back.
    handlers = {number: signal.getsignal(number) for number in _INTERRUPTS}
    if threading.current_thread() is not threading.main_thread() or None in handlers.values():
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
