"""Bytes that are no messages, sent to every port of a job: it ends, and does not hang."""

import socket
import threading
import time
from contextlib import suppress

import psutil
import pytest

from tests.tp.conftest import Launcher
from tests.tp.launched import END_S, Job, processes_in, wait_until
from tests.tp.main_job import SPLIT

pytestmark = [pytest.mark.tp, pytest.mark.slow, pytest.mark.weights]


def _listeners(job: Job) -> dict[tuple[str, int], str]:
    """Address -> role of every port that the job listens at."""
    found = {}
    for process in processes_in(job.work):
        with suppress(psutil.Error):
            role = process.environ().get("MS_ROLE", "")
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found[tuple(connection.laddr)] = role
    return found


def _send_zeros(address: tuple[str, int], is_over: threading.Event) -> None:
    while not is_over.is_set():
        with suppress(OSError), socket.create_connection(address, timeout=1) as connection:
            connection.sendall(bytes(4096))
        time.sleep(0.001)


@pytest.mark.parametrize("roles", [("MS_WORKER",), ("MS_WORKER", "MS_SCHED")])
def test_a_storm_of_zeros_ends_the_job(launch: Launcher, roles: tuple[str, ...]) -> None:
    settings = "--max_new_tokens 1900 --min_new_tokens 1900 --predict_data 你好"
    # The time that ranks wait for a message of another; the rest of END_S is for a busy machine.
    job = launch(f"{SPLIT} {settings}", "2", MS_NODE_TIMEOUT="10")
    wait_until(lambda: list(_listeners(job).values()).count("MS_WORKER") == 2)
    listeners = _listeners(job)
    assert {host for host, _ in listeners} == {"127.0.0.1"}
    is_over = threading.Event()
    for address, role in listeners.items():
        if role in roles:
            threading.Thread(target=_send_zeros, args=(address, is_over), daemon=True).start()
    try:
        ended = job.wait(END_S)
    finally:
        is_over.set()
    assert ended.exit_code != 0
    assert "so the job was ended" in ended.stderr
    assert "internal error" not in ended.stderr
