"""`mindformers-glm serve --ray`: the application of Ray Serve, until a signal comes."""

import argparse
import logging
import signal
import time
from types import FrameType
from typing import Any

from mindformers_glm.config.environment import api_keys
from mindformers_glm.config.run_config import RunConfig
from mindformers_glm.core.errors import ConfigError, GlmError, first_words
from mindformers_glm.serving.ray import board as ray_board
from mindformers_glm.serving.ray.app import check_for_ray, check_keys, create_application
from mindformers_glm.serving.ray.cluster import check_packages, connect, serve_address
from mindformers_glm.serving.ray.gate import REPLICAS
from mindformers_glm.serving.ray.options import read_ray_option
from mindformers_glm.serving.ray.table import ReplicaTable
from mindformers_glm.serving.ray.words import given_words
from mindformers_glm.serving.server.run_server import open_socket
from mindformers_glm.system.log import note

APPLICATION = "mindformers-glm"
_LOOPBACKS = ("127.0.0.1", "::1", "localhost")
_ALL = ("0.0.0.0", "::", "")  # of a machine's addresses
_LOOK_S = 2.0
_ASK_S = 0.5  # between two questions to Ray Serve whether it is done
_END_S = 60.0  # for the end of replicas and ingresses beside their answers
# Who signals all processes of a service (systemd, a shell) may be heard twice.
_ONE_SIGNAL_S = 1.0


class Signals:
    """Hears SIGINT and SIGTERM: the first one asks for the end, a second one for it at once."""

    def __init__(self) -> None:
        self._first_s = 0.0
        self.has_hurried = False

    @property
    def has_come(self) -> bool:
        """Whether there was one."""
        return bool(self._first_s)

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        now_s = time.monotonic()
        if not self._first_s:
            self._first_s = now_s
        elif now_s > self._first_s + _ONE_SIGNAL_S:
            self.has_hurried = True


def serve_on_ray(arguments: argparse.Namespace, config: RunConfig) -> int:
    """Serve until a signal comes and return the exit code.

    Args:
        arguments: the command line; `ray` holds the words of that option.
    Raises:
        GlmError: an option is wrong, the replicas cannot start, or the cluster is lost.
    """
    settings = read_ray_option(arguments.ray)
    check_packages("ray", "aiohttp", "fastapi", "grpc")
    check_for_ray(config)
    if settings.address:
        check_keys(config)
    has_key = bool(api_keys(config.server["api_key"], config.server["api_key_file"]))
    host, port = config.server["host"], config.server["port"]
    if not settings.address:
        port = _free_port(host, port)
    connect(settings.address, is_verbose=config.verbose)
    signals = Signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signals.take)
    try:
        return _serve(arguments, config, host, port, signals, has_key=has_key)
    except GlmError:
        raise
    except Exception as problem:  # Ray has no one type for what a cluster that ends does
        raise GlmError(f"The Ray cluster has failed: {first_words(problem)}") from None


def _serve(
    arguments: argparse.Namespace,
    config: RunConfig,
    host: str,
    port: int,
    signals: Signals,
    *,
    has_key: bool,
) -> int:
    from ray import serve

    settings = read_ray_option(arguments.ray)
    if not config.verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # set anew by the import
    place = "" if settings.address or host in _ALL else host
    application = create_application(settings, given_words(arguments, config), place)
    if _status() is not None:
        raise ConfigError(
            f"The cluster {settings.address} serves {APPLICATION} already, by another serve --ray "
            "perhaps: end that one first."
        )
    port = _start_proxies(host, port)
    try:
        target = serve.RunTarget(application, name=APPLICATION, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        if _wait_for_start(signals):
            _tell_ready(host, port, has_key=has_key)
            _follow(signals)
    finally:
        _end(config.server["drain_timeout_s"], signals)
    return 0


def _free_port(host: str, port: int) -> int:
    """The port, or one that is free in place of 0.

    Raises:
        ConfigError: it is taken.
    """
    with open_socket(host, port) as listener:
        return int(listener.getsockname()[1])


def _start_proxies(host: str, port: int) -> int:
    """Have Ray Serve listen on all machines, or find that it does already; return the port.

    Raises:
        ConfigError: the port is taken, or Ray Serve listens elsewhere.
    """
    from ray import serve

    running = serve_address()
    if running is None:
        port = _free_port(host, port)
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        return port
    if running != (host, port or running[1]):
        raise ConfigError(
            f"Ray Serve listens at {running[0]} port {running[1]} in this cluster already: give "
            "--host and --port so, or end it by serve shutdown."
        )
    return running[1]


def _wait_for_start(signals: Signals) -> bool:
    """Whether the application runs; False: a signal came first.

    Raises:
        GlmError: it cannot.
    """
    from ray.serve.schema import ApplicationStatus

    while not signals.has_come:
        status = _status()
        if status is None:
            raise GlmError(f"Somebody else has deleted {APPLICATION} from the cluster.")
        if status.status == ApplicationStatus.RUNNING:
            return True
        if status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            problems = [one.message for one in status.deployments.values() if one.message]
            raise GlmError(f"The replicas cannot start: {_reason(problems or [status.message])}")
        time.sleep(_ASK_S)
    return False


def _reason(messages: list[str]) -> str:
    """The sentence of a traceback that says what is wrong."""
    for message in messages:
        for line in reversed(message.splitlines()):
            kind, colon, sentence = line.strip().partition("Error: ")
            if colon and " " not in kind:
                return sentence
    return first_words(RuntimeError(" ".join(messages)))


def _follow(signals: Signals) -> None:
    """Tell of replicas that come and go until a signal comes.

    Raises:
        GlmError: the application is gone.
    """
    table = ReplicaTable(time.monotonic)
    known: dict[str, str] = {}  # URLs by names
    while not signals.has_come:
        if _status() is None:
            raise GlmError(f"Somebody else has deleted {APPLICATION} from the cluster.")
        table.update(ray_board.read_all(APPLICATION))
        present = {one.name: one.url for one in table.ready}
        for name in sorted(present.keys() - known.keys()):
            note(f"replica {name} answers at {present[name]}/v1")
        for name in sorted(known.keys() - present.keys()):
            note(f"replica {name} is gone")
        known = present
        time.sleep(_LOOK_S)


def _tell_ready(host: str, port: int, *, has_key: bool) -> None:
    shown = f"[{host}]" if ":" in host else host
    note(
        f"serving by Ray at http://{shown}:{port}/v1, {'with' if has_key else 'without'} API key; "
        f"http://{shown}:{port}{REPLICAS} lists the replicas, each of which is a server too"
    )
    if not has_key and host not in _LOOPBACKS:
        note("anybody who reaches this address can use the model: --api_key_file asks for a key")


def _status() -> Any:
    from ray import serve

    return serve.status().applications.get(APPLICATION)


def _end(drain_s: float, signals: Signals) -> None:
    """Let answers under way come to their end; a cluster of one's own ends with this process."""
    import ray
    from ray import serve

    if signals.has_come:
        note("ending after the answers under way; a second signal ends them")
    serve.delete(APPLICATION, _blocking=False)
    end_s = time.monotonic() + drain_s + _END_S
    while _status() is not None and time.monotonic() < end_s and not signals.has_hurried:
        time.sleep(_ASK_S)
    ray.shutdown()
