"""What MindSpore's processes are told in their environment, as msrun tells them.

Source: the documentation of MindSpore's dynamic cluster, and msrun (mindspore 2.7.1,
parallel/cluster/process_entity/_api.py).
"""

from mindformers_glm.config.launch_config import LaunchConfig


def cluster_environment(config: LaunchConfig, address: str, port: int) -> dict[str, str]:
    """Where the scheduler is and how many workers it waits for."""
    return {
        "MS_SCHED_HOST": address,
        "MS_SCHED_PORT": str(port),
        "MS_WORKER_NUM": str(config.num_workers),
        "MS_TOPO_TIMEOUT": str(config.cluster_timeout_s),
        "RANK_SIZE": str(config.num_workers),
    }


def scheduler_environment() -> dict[str, str]:
    """The role of the one process that does no work of its own."""
    return {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}


def worker_environment(config: LaunchConfig, rank: int) -> dict[str, str]:
    """The role and rank of one worker, and which of the host's devices is its own."""
    return {
        "MS_ROLE": "MS_WORKER",
        "MS_NODE_ID": str(rank),
        "MS_NODE_RANK": str(config.node_rank),
        "RANK_ID": str(rank),
        "DEVICE_ID": str(rank - config.ranks[0]),
    }
