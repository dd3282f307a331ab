"""`mindformers-glm serve --ray`: the application of Ray Serve, until a signal comes."""

import argparse
import logging
import signal
import threading
import time
from typing import Any

from mindformers_glm.config.environment import api_keys
from mindformers_glm.config.run_config import RunConfig
from mindformers_glm.core.errors import GlmError, first_words
from mindformers_glm.serving import ray_board
from mindformers_glm.serving.ray_app import check_for_ray, create_application
from mindformers_glm.serving.ray_cluster import check_packages, connect
from mindformers_glm.serving.ray_gate import REPLICAS
from mindformers_glm.serving.ray_options import read_ray_option
from mindformers_glm.serving.ray_words import given_words
from mindformers_glm.serving.server.run_server import open_socket
from mindformers_glm.system.log import note

APPLICATION = "mindformers-glm"
_LOOPBACKS = ("127.0.0.1", "::1", "localhost")
_LOOK_S = 2.0
_END_S = 60.0  # for the end of replicas and ingresses beside their answers


def serve_on_ray(arguments: argparse.Namespace, config: RunConfig) -> int:
    """Serve until a signal comes and return the exit code.

    Args:
        arguments: the command line; `ray` holds the words of that option.
    Raises:
        GlmError: an option is wrong, or the replicas cannot start.
    """
    settings = read_ray_option(arguments.ray)
    check_packages("ray", "aiohttp")
    check_for_ray(config)
    host, port = config.server["host"], config.server["port"]
    is_local = host in _LOOPBACKS
    listener = open_socket(host, port)  # tells early that it is taken
    port = listener.getsockname()[1]
    listener.close()
    ended = threading.Event()
    connect(settings.address, is_verbose=config.verbose)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    from ray import serve

    if not config.verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # set anew by the import
    try:
        application = create_application(
            settings, given_words(arguments, config), "" if settings.address else host
        )
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        target = serve.RunTarget(application, name=APPLICATION, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        if not _wait_for_start(ended):
            return 0
        _tell_ready(host, port, has_key=_has_key(config), is_local=is_local)
        _follow(ended)
    finally:
        _end(config.server["drain_timeout_s"])
    return 0


def _wait_for_start(ended: threading.Event) -> bool:
    """Whether the application runs; False: a signal came first.

    Raises:
        GlmError: it cannot.
    """
    from ray.serve.schema import ApplicationStatus

    while not ended.wait(0.2):
        status = _status()
        if status is None or status.status == ApplicationStatus.RUNNING:
            return True
        if status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            problems = [one.message for one in status.deployments.values() if one.message]
            raise GlmError(f"The replicas cannot start: {_reason(problems or [status.message])}")
    return False


def _reason(messages: list[str]) -> str:
    """The sentence of a traceback that says what is wrong."""
    for message in messages:
        for line in reversed(message.splitlines()):
            kind, colon, sentence = line.strip().partition("Error: ")
            if colon and " " not in kind:
                return sentence
    return first_words(RuntimeError(" ".join(messages)))


def _follow(ended: threading.Event) -> None:
    """Tell of replicas that come and go until a signal comes."""
    known: set[str] = set()
    beats: dict[str, int] = {}
    while not ended.wait(_LOOK_S if known else 0.1):
        entries = ray_board.read_all(APPLICATION)
        alive = {name for name, one in entries.items() if one["beat"] != beats.get(name)}
        beats = {name: one["beat"] for name, one in entries.items()}
        for name in sorted(alive - known):
            note(f"replica {name} answers at {entries[name]['url']}/v1")
        for name in sorted(known - alive):
            note(f"replica {name} is gone")
        known = alive


def _tell_ready(host: str, port: int, *, has_key: bool, is_local: bool) -> None:
    shown = f"[{host}]" if ":" in host else host
    note(
        f"serving by Ray at http://{shown}:{port}/v1, {'with' if has_key else 'without'} API key; "
        f"http://{shown}:{port}{REPLICAS} lists the replicas, each of which is a server too"
    )
    if not has_key and not is_local:
        note("anybody who reaches this address can use the model: --api_key_file asks for a key")


def _has_key(config: RunConfig) -> bool:
    return bool(api_keys(config.server["api_key"], config.server["api_key_file"]))


def _status() -> Any:
    from ray import serve

    return serve.status().applications.get(APPLICATION)


def _end(drain_s: float) -> None:
    """Let answers under way come to their end; a cluster of one's own ends with this process."""
    import ray
    from ray import serve

    note("ending after the answers under way")
    serve.delete(APPLICATION, _blocking=False)
    end_s = time.monotonic() + drain_s + _END_S
    while _status() is not None and time.monotonic() < end_s:
        time.sleep(0.2)
    ray.shutdown()
