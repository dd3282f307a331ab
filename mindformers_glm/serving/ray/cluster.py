"""A Ray cluster to work on: a running one, or one of this process's own, small and quiet."""

import logging
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from mindformers_glm.config.environment import prepare_for_ray
from mindformers_glm.core.errors import ConfigError, GlmError, first_words

_PROXY_CALLBACK = "mindformers_glm.serving.ray.proxy:middlewares"
_VERSION = "2.60."  # others call what is used here otherwise, or not at all
_OBJECT_STORE_BYTES = 128 * 2**20  # requests do not go through it


def check_packages(*names: str) -> None:
    """Find out whether Ray is there, and the right one, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError(
            f"--ray needs {', '.join(missing)}: run pip install 'mindformers-glm[ray]', or pip "
            "install -e '.[ray]' in the source folder."
        )
    if not (found := version("ray")).startswith(_VERSION):
        raise ConfigError(
            f"--ray needs Ray {_VERSION}*, and {found} is installed: run pip install "
            f"'ray[serve,data]=={_VERSION}*'."
        )


def connect(address: str, *, is_verbose: bool) -> None:
    """Connect to a cluster, or start one.

    Args:
        address: of its head; auto: of the one that runs on this machine; "": start one.
    Raises:
        GlmError: there is none at the address.
    """
    prepare_for_ray(_PROXY_CALLBACK, is_own_cluster=not address)
    import ray

    level = logging.INFO if is_verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": is_verbose, "logging_level": level}
    if address:
        options["address"] = address
    else:
        options |= {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
        options["address"] = "local"
    try:
        ray.init(**options)
    except Exception as problem:  # Ray has no type for a node that did not come up in time
        where = f"There is no Ray cluster at {address}" if address else "Ray cannot be started here"
        raise GlmError(f"{where}: {first_words(problem)}") from None
    # Its loggers have their level from the import on.
    for name in ("ray", "ray.serve", "ray.data"):
        logging.getLogger(name).setLevel(level)


def serve_address() -> tuple[str, int] | None:
    """Host and port of Ray Serve's proxies where it runs in the cluster."""
    from ray.serve.context import _get_global_client  # nothing public says it (Ray Serve 2.60)

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def machine_cpus() -> list[float]:
    """How many CPUs Ray counts on each machine of the cluster."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [
        sum(amount for name, amount in machine.items() if name.lower() == "cpu")
        for machine in machines
    ]
