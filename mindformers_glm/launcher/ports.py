"""The scheduler's address: whether it is this host's, and a port that nobody else takes."""

import random
import socket
from collections.abc import Iterable

from mindformers_glm.config.launch_config import AUTO_PORTS
from mindformers_glm.core.errors import ConfigError


class PortTaken(ConfigError):
    """Somebody listens at the port, or another launcher has reserved it."""


class ReservedPort:
    """A port held for a scheduler that will listen there some seconds later.

    Two sockets hold it until `close` or the end of the process. One is bound to the port without
    listening: the system then gives the port to no outgoing connection, while the scheduler, which
    sets SO_REUSEADDR as this socket does, may listen there. The other keeps other launchers away:
    its name lives in the system's abstract namespace, which ends where the ports' does (the network
    namespace) and which leaves no file behind.
    """

    def __init__(self, address: str, port: int) -> None:
        """Reserve the port.

        Raises:
            PortTaken: it is taken.
        """
        self.port = port
        self._claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._claim.bind(f"\0mindformers_glm.launcher.{port}")
            self._bound.bind((address, port))
        except OSError:
            self.close()
            raise PortTaken(
                f"Port {port} of {address} is taken, perhaps by another job: give another "
                f"MASTER_PORT, or auto for a free one from {AUTO_PORTS[0]} to {AUTO_PORTS[-1]}."
            ) from None

    def close(self) -> None:
        """Give the port back."""
        self._claim.close()
        self._bound.close()

    def __enter__(self) -> "ReservedPort":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def reserve_free_port(address: str, candidates: Iterable[int] | None = None) -> ReservedPort:
    """Reserve the first free of the candidates, by default AUTO_PORTS in random order.

    Raises:
        PortTaken: none is free.
    """
    if candidates is None:
        candidates = random.sample(AUTO_PORTS, len(AUTO_PORTS))
    for port in candidates:
        try:
            return ReservedPort(address, port)
        except PortTaken:
            continue
    raise PortTaken(f"No port from {AUTO_PORTS[0]} to {AUTO_PORTS[-1]} is free on {address}.")


def resolve_address(name: str) -> str:
    """Return the IPv4 address of a host; MindSpore takes no others.

    Raises:
        ConfigError: there is no such host.
    """
    try:
        return socket.gethostbyname(name)
    except OSError as problem:
        raise ConfigError(
            f"MASTER_ADDR {name!r} has no IPv4 address: {problem.strerror or problem}."
        ) from None


def is_local_address(address: str) -> bool:
    """Whether the address is one of this host's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
