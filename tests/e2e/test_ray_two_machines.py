"""Two network namespaces as two machines: the second one joins a cluster, works, and is lost."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar

import pytest

from tests.e2e.ray_server import (
    Program,
    RayServer,
    addresses,
    ask,
    ask_while,
    environment,
    start,
    wait_for,
)
from tests.two_hosts import ADDRESSES, enter, pull_cable, run_on, two_hosts

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

_HEAD, _SECOND = ADDRESSES
_SMALL = ("--num-cpus=2", "--object-store-memory=134217728", "--block")
# Each host has its ports for itself. Where they are not given, Ray 2.60 waits 15 s for its agents
# to choose them and then ends, which is too short a time on a busy machine.
_PORTS = (
    "--dashboard-agent-listen-port=52365",
    "--dashboard-agent-grpc-port=52366",
    "--runtime-env-agent-port=52367",
    "--metrics-export-port=52368",
)
# A machine of 2 CPUs has room for two ingresses and one replica of 1: the other one has to wait.
_SERVE = (f"replicas=2,cpus=1,address={_HEAD}:6379", "--host", "0.0.0.0", "--port", "8000")
_URL = f"http://{_HEAD}:8000"
Found = TypeVar("Found")


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two hosts."""
    with two_hosts("r") as names:
        yield names


def _on(host: str, find: Callable[[], Found]) -> Found:
    """What `find` gives when it is called there."""
    found: list[Found] = []

    def work() -> None:
        enter(host)
        found.append(find())

    thread = Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def test_a_machine_joins_and_is_lost(hosts: tuple[str, str], tmp_path: Path) -> None:
    environ = environment()

    def start_ray(host: int, *words: str) -> Program:
        command = ("ray.scripts.scripts", "start", f"--node-ip-address={ADDRESSES[host]}")
        options = {"prefix": run_on(hosts[host]), "environ": environ}
        return start(
            lambda: Program(tmp_path, *command, *words, *_PORTS, *_SMALL, **options),
            lambda program: "block forever" in program.log,
        )

    def machines() -> set[str]:
        return {one.partition(":")[0] for one in _on(hosts[0], lambda: addresses(_URL))}

    start_ray(0, "--head", "--port=6379", "--include-dashboard=false")

    def serve() -> RayServer:
        return RayServer(tmp_path, *_SERVE, prefix=run_on(hosts[0]), environ=environ)

    server = serve()
    server.wait_for(lambda: machines() == {_HEAD})
    second = start_ray(1, f"--address={_HEAD}:6379")
    server.wait_for(lambda: machines() == {_HEAD, _SECOND})
    for number in range(8):  # of eight beginnings each replica has some
        assert _on(hosts[0], partial(ask, _URL, number)) == "whole"
    other = serve()
    wait_for(lambda: other.process.poll() is not None)
    assert other.process.returncode == 1
    assert "serves mindformers-glm already" in other.log
    became = ask_while(_URL, partial(pull_cable, hosts[1]), partial(enter, hosts[0]))
    assert became["whole"] + became["told"] == 48, became
    server.wait_for(lambda: machines() == {_HEAD})
    assert second.process.poll() is None
    assert server.end() == 0, server.log
