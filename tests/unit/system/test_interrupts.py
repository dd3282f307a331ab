"""What a signal does while a graph compiles, and while a rank waits for a dead one."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

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
with leave_if_stuck(lambda: print("rescued"), patience_s=0.1):
    threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
    if sys.argv[1] == "stuck":  # as inside a collective: no handler runs
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
    try:
        time.sleep(1000)
    finally:
        print("unwound")
"""


@pytest.mark.parametrize(("how", "said"), [("stuck", "rescued\n"), ("free", "unwound\n")])
def test_a_stuck_process_rescues_and_leaves_when_it_is_interrupted(how: str, said: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == said
    # Python itself ends by the signal where KeyboardInterrupt is not caught.
    assert process.returncode == (130 if how == "stuck" else -signal.SIGINT)
