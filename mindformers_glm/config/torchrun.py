"""A job that torchrun, or a cluster's own starter, has started by PyTorch's variables.

They say what MindSpore wants to know by other names; torchrun has nothing like MindSpore's
scheduler, which rank 0 then starts. Read: torch 2.13 `torch/distributed/run.py` and
`elastic/agent/server/local_elastic_agent.py`.
"""

import socket
from collections.abc import Mapping

from mindformers_glm.config.launched import is_launched
from mindformers_glm.core.errors import ConfigError

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
_MEET_S = "600"
_MAX_PORT = 65_535


def read_torchrun(environ: Mapping[str, str]) -> dict[str, str] | None:
    """What MindSpore is to find in this process's environment; None: this is no such job.

    Raises:
        ConfigError: a variable is missing or no such value.
    """
    if is_launched(environ) or not {"RANK", "WORLD_SIZE"} <= set(environ):
        return None
    numbers = {name: environ.get(name, "") for name in _NUMBERS}
    for name, text in numbers.items():
        if not text.isdecimal():
            raise ConfigError(
                f"RANK and WORLD_SIZE say that this is a process of a job, whose {name} must be a "
                f"whole number, got {text!r}: start with torchrun, or unset RANK and WORLD_SIZE."
            )
    rank, size = int(numbers["RANK"]), int(numbers["WORLD_SIZE"])
    if rank >= size:
        raise ConfigError(f"RANK must be from 0 to WORLD_SIZE - 1, got {rank} of {size}.")
    if size == 1:
        return None
    # torchrun's own store listens on MASTER_PORT; the next port is as good for all ranks.
    has_store = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    port = int(numbers["MASTER_PORT"]) + has_store
    if not 0 < port <= _MAX_PORT:
        raise ConfigError(f"MindSpore would need the port {port}: choose another --master_port.")
    return {
        "MS_ROLE": "MS_WORKER",
        "MS_NODE_ID": str(rank),
        "MS_NODE_RANK": environ.get("GROUP_RANK", "0"),
        "MS_WORKER_NUM": str(size),
        "MS_SCHED_HOST": _address(environ.get("MASTER_ADDR", "")),
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": environ.get("MS_TOPO_TIMEOUT", _MEET_S),
        "MS_NODE_TIMEOUT": environ.get("MS_NODE_TIMEOUT", "20"),
        "RANK_ID": str(rank),
        "RANK_SIZE": str(size),
        "DEVICE_ID": numbers["LOCAL_RANK"],
    }


def _address(name: str) -> str:
    try:
        return socket.gethostbyname(name or "127.0.0.1")
    except OSError as problem:
        raise ConfigError(
            f"MASTER_ADDR {name!r} has no IPv4 address: {problem.strerror or problem}."
        ) from None
