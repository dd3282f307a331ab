"""Two network namespaces as two machines, joined by a cable of their own."""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_CLONE_NEWNET = 0x40000000  # linux/sched.h


@contextmanager
def two_hosts(tag: str) -> Iterator[tuple[str, str]]:
    """Names of two namespaces that have `ADDRESSES`; skips the test where there can be none.

    Args:
        tag: tells those of several tests apart, one or two letters (a device's name is short).
    """
    if shutil.which("ip") is None:
        pytest.skip("the command ip is not installed (Debian package iproute2)")
    names = (f"glm{tag}{os.getpid()}a", f"glm{tag}{os.getpid()}b")
    try:
        try:
            _join(names)
        except subprocess.CalledProcessError as problem:
            reason = problem.stderr.decode().strip()
            pytest.skip(f"network namespaces cannot be made here: {reason}")
        yield names
    finally:
        for name in names:
            _kill_all(name)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def run_on(host: str) -> tuple[str, ...]:
    """What stands before a command that runs there."""
    return ("ip", "netns", "exec", host)


def enter(host: str) -> None:
    """Have the calling thread, and none other, open its connections from that host."""
    with Path("/run/netns", host).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {host}")


def pull_cable(host: str) -> None:
    """Part a host from the other one, without a word to either."""
    _ip("-n", host, "link", "set", host, "down")


def _kill_all(host: str) -> None:
    """What a test that failed has left there."""
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, check=False)
    for process in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def _join(names: tuple[str, str]) -> None:
    for name in names:
        _ip("netns", "add", name)
    _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1])
    _ip("link", "set", names[1], "netns", names[1])
    for name, address in zip(names, ADDRESSES, strict=True):
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", name, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
