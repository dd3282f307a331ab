"""`serve --ray` on one machine, as processes of which some are killed -9."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.ray_server import ENGINE, INGRESS, SERVER, RayServer, ask, ask_while, start_server

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    server = start_server(tmp_path_factory.mktemp("ray"), "replicas=2", "--port", "0")
    try:
        server.wait_for_replicas(2)
        yield server
        assert server.end() == 0, server.log
    finally:
        server.kill()


def test_a_killed_replica_costs_no_request_without_a_token(server: RayServer) -> None:
    # Each replica is a server by itself; what comes through an ingress is its answer.
    for address in server.addresses():
        assert ask(f"http://{address}", 0) == "whole"
    victim = server.find(SERVER)[0]
    became = ask_while(server.url, victim.kill)
    assert became["whole"] + became["told"] == 48, became
    assert became["told"] <= 12, became


@pytest.mark.slow
def test_the_replica_is_back_by_itself(server: RayServer) -> None:
    before = server.wait_for_replicas(2)
    server.find(ENGINE)[0].kill()  # Ray's own process this time
    begin_s = time.monotonic()
    server.wait_for(lambda: len(server.addresses() & before) == 1)
    assert server.wait_for_replicas(2) != before
    print(f"back after {time.monotonic() - begin_s:.0f} s")


@pytest.mark.slow
def test_a_killed_ingress_costs_no_request_without_a_token(server: RayServer) -> None:
    victim = server.find(INGRESS)[0]
    became = ask_while(server.url, victim.kill)
    assert became["whole"] + became["told"] == 48, became
    server.wait_for(lambda: len(server.find(INGRESS)) == 2)


@pytest.mark.slow
def test_a_frozen_replica_is_left_for_another(server: RayServer) -> None:
    # Nobody closes its connections: the requests to it wait until it counts as gone.
    server.wait_for_replicas(2)
    victim = server.find(SERVER)[0]
    became = ask_while(server.url, victim.suspend)
    assert became["whole"] + became["told"] == 48, became
    server.wait_for(lambda: victim not in server.find(SERVER))
    server.wait_for_replicas(2)


@pytest.mark.slow
def test_a_signal_ends_all_after_the_answers_under_way(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    # Two at once on one machine: a cluster of its own for each; a key that its processes find.
    words = ("replicas=1", "--port", "0", "--api_key_file", "keys", "--host", "0.0.0.0")
    server = start_server(tmp_path, *words)
    try:
        assert "with API key" in server.log
        curl = ["curl", "-s", "-m", "60", f"{server.url}/v1/models"]
        asked = subprocess.run(curl, capture_output=True, text=True, check=True)
        assert "API key is missing" in asked.stdout
        curl += ["-H", "authorization: Bearer secret"]
        asked = subprocess.run(curl, capture_output=True, text=True, check=True)
        assert '"glm4-mini"' in asked.stdout
        assert server.end(signal.SIGINT) == 0, server.log
    finally:
        server.kill()
