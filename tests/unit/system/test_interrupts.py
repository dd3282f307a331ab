"""What a signal does while a graph compiles, and while a rank waits for a dead one."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindformers_glm.system.interrupts import delay_interrupts


@pytest.fixture
def handlers() -> Iterator[None]:
    previous = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in previous:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_delivered_after_the_block(number: signal.Signals, handlers: None) -> None:
    events: list[object] = []
    signal.signal(number, lambda received, frame: events.append(received))
    with delay_interrupts():
        signal.raise_signal(number)
        signal.raise_signal(number)
        events.append("end of the block")
    assert events == ["end of the block", number]


def test_the_handler_may_raise_and_is_in_place_again(handlers: None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), delay_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_held_nothing_delivered(handlers: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    with delay_interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_runs_the_block_as_it_is(handlers: None) -> None:
    seen: list[object] = []

    def run() -> None:
        with delay_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


STUCK = """
import ctypes, sys, threading, time
from mindformers_glm.system.interrupts import leave_if_stuck, on_interrupt, raise_once
on_interrupt(raise_once)
mutex = ctypes.create_string_buffer(64)
ctypes.CDLL(None).pthread_mutex_lock(mutex)
def rescue():
    print("rescued")
    if "fails" in sys.argv:
        raise OSError("No space left on device")
with leave_if_stuck(rescue, patience_s=0.1):
    threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
    if "stuck" in sys.argv:  # as inside a collective: no handler runs
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
    try:
        time.sleep(1000)
    finally:
        print("unwound")
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [("stuck", "rescued\n"), ("stuck fails", "rescued\n"), ("free", "unwound\n")],
)
def test_a_stuck_process_rescues_and_leaves_when_it_is_interrupted(how: str, said: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, *how.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    try:
        stdout, stderr = process.communicate(timeout=10)
    finally:
        process.kill()
    assert stdout == said
    assert ("error: No space left on device\n" in stderr) is ("fails" in how)
    # Python itself ends by the signal where KeyboardInterrupt is not caught.
    assert process.returncode == (130 if "stuck" in how else -signal.SIGINT)


_LEAVES_IN_A_NEW_FOLDER = """
import signal, sys
from pathlib import Path
from mindformers_glm.system.interrupts import exit_at_once, new_folder, on_interrupt
on_interrupt(exit_at_once)
with new_folder(Path(sys.argv[1])):
    if sys.argv[2]:
        (Path(sys.argv[1]) / sys.argv[2]).touch()
    signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("name", ["", "file"])
def test_leaving_at_once_leaves_no_new_folder_that_is_empty(name: str, tmp_path: Path) -> None:
    place = tmp_path / "new"
    command = [sys.executable, "-c", _LEAVES_IN_A_NEW_FOLDER, str(place), name]
    assert subprocess.run(command, timeout=60).returncode == 130
    assert place.exists() == bool(name)
