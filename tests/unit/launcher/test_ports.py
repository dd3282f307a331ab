"""Ports that are taken, free, and reserved for a scheduler."""

import socket
from collections.abc import Iterator

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.launcher.ports import (
    PortTaken,
    ReservedPort,
    is_local_address,
    reserve_free_port,
    resolve_address,
)

HOST = "127.0.0.1"


@pytest.fixture
def free_port() -> int:
    with reserve_free_port(HOST) as reserved:
        return reserved.port


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def taken_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Somebody listens there, as servers do: with SO_REUSEADDR."""
    with socket.create_server((request.param, 0)) as server:
        yield server.getsockname()[1]


def test_a_port_where_somebody_listens_is_taken(taken_port: int) -> None:
    with pytest.raises(PortTaken, match=f"Port {taken_port} of 127.0.0.1 is taken"):
        ReservedPort(HOST, taken_port)


def test_a_reserved_port_is_taken_until_it_is_given_back(free_port: int) -> None:
    with ReservedPort(HOST, free_port), pytest.raises(PortTaken):
        ReservedPort(HOST, free_port)
    ReservedPort(HOST, free_port).close()


def test_a_scheduler_can_listen_at_its_reserved_port(free_port: int) -> None:
    # MindSpore's scheduler sets SO_REUSEADDR, as create_server does (seen with strace, 2.7.1).
    with (
        ReservedPort(HOST, free_port),
        socket.create_server((HOST, free_port)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as end,
    ):
        end.shutdown(socket.SHUT_RDWR)
        assert client.recv(1) == b""
    # What is left of the connection (TIME_WAIT) must not keep the next job away.
    ReservedPort(HOST, free_port).close()


def test_the_system_gives_a_reserved_port_to_nobody(free_port: int) -> None:
    with (
        ReservedPort(HOST, free_port),
        socket.socket() as other,
        pytest.raises(OSError, match="in use"),
    ):
        other.bind((HOST, free_port))


def test_the_first_free_port_is_taken(taken_port: int, free_port: int) -> None:
    with reserve_free_port(HOST, [taken_port, free_port]) as reserved:
        assert reserved.port == free_port
        with pytest.raises(PortTaken, match="No port"):
            reserve_free_port(HOST, [taken_port, free_port])


def test_free_ports_lie_where_the_guide_says() -> None:
    with reserve_free_port(HOST) as first, reserve_free_port(HOST) as second:
        assert first.port != second.port
        assert {first.port, second.port} <= set(range(50_000, 65_536))


def test_an_address_is_resolved_and_known_as_local_or_not() -> None:
    assert resolve_address("localhost") == "127.0.0.1"
    assert is_local_address("127.0.0.1")
    assert not is_local_address("192.0.2.1")  # kept for documentation, RFC 5737
    with pytest.raises(ConfigError, match="no-such-host"):
        resolve_address("no-such-host.invalid")
