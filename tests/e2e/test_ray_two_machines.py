"""Two network namespaces as two machines: the second one joins a cluster and gets a replica."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.run_process import REPO

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

_HEAD, _SECOND = "10.79.0.1", "10.79.0.2"
_START_S = 300.0
_CALLBACK = "mindformers_glm.serving.ray_proxy:middlewares"
_SMALL = ("--num-cpus=2", "--object-store-memory=134217728", "--block")
# A machine of 2 CPUs has room for two ingresses and one replica of 1: the other one has to wait.
_SERVE = ("replicas=2,cpus=1,address=10.79.0.1:6379", "--host", "0.0.0.0", "--port", "8000")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces, joined by a cable."""
    names = (f"glmray{os.getpid()}a", f"glmray{os.getpid()}b")
    if shutil.which("ip") is None:
        pytest.skip("the command ip is not installed (Debian package iproute2)")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1])
        _ip("link", "set", names[1], "netns", names[1])
        for name, address in zip(names, (_HEAD, _SECOND), strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", name, "up")
        yield names
    except subprocess.CalledProcessError as problem:
        pytest.skip(f"network namespaces cannot be made here: {problem.stderr.decode().strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def start(hosts: tuple[str, str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a program on a host."""
    environment = os.environ | {
        "PYTHONPATH": str(REPO),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": _CALLBACK,
    }
    started: list[subprocess.Popen[bytes]] = []

    def start(host: int, *command: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", hosts[host], sys.executable, *command],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_machine_that_joins_gets_a_replica(
    hosts: tuple[str, str], start: Callable[..., Any], tmp_path: Path
) -> None:
    def ask(path: str, *data: str) -> str:
        command = ["curl", "-s", "-m", "60", f"http://{_HEAD}:8000{path}", *data]
        asked = subprocess.run(
            ["ip", "netns", "exec", hosts[0], *command], capture_output=True, text=True, check=False
        )
        return asked.stdout

    def wait_for(find: Callable[[], bool]) -> None:
        end_s = time.monotonic() + _START_S
        while not find():
            assert time.monotonic() < end_s, (tmp_path / "log").read_text()
            time.sleep(0.5)

    ray = ("-m", "ray.scripts.scripts", "start")
    start(0, *ray, "--head", f"--node-ip-address={_HEAD}", "--port=6379", *_SMALL)
    wait_for(lambda: "block forever" in (tmp_path / "log").read_text())
    server = start(0, "-m", "mindformers_glm", "serve", "--ray", *_SERVE)
    wait_for(lambda: f"{_HEAD}:" in ask("/replicas"))
    assert f"{_SECOND}:" not in ask("/replicas")
    start(1, *ray, f"--address={_HEAD}:6379", f"--node-ip-address={_SECOND}", *_SMALL)
    wait_for(lambda: f"{_SECOND}:" in ask("/replicas"))
    body = '{"model": "glm4-mini", "prompt": "%d", "max_tokens": 4}'
    for number in range(8):  # of eight beginnings each replica has some
        header = ("-H", "content-type: application/json", "-d", body % number)
        assert '"text"' in ask("/v1/completions", *header)
    server.terminate()
    assert server.wait(120) == 0
