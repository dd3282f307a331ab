"""The processes of a launched job find each other, whatever they run on."""

from mindformers_glm.config.environment import failed_meeting
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.sharding import TensorParallel


def meet_ranks(tensor_parallel: TensorParallel) -> None:
    """Wait for the other ranks; MindSpore's collectives work from then on.

    Raises:
        ConfigError: they cannot be found, or the job has another number of ranks.
    """
    from mindspore.communication import get_group_size, get_rank, init

    try:
        init()
    except RuntimeError as problem:
        raise failed_meeting(problem) from problem
    found = TensorParallel(get_group_size(), get_rank())
    if found != tensor_parallel:
        raise ConfigError(
            f"The launcher made this process rank {found.rank} of {found.size}, expected rank "
            f"{tensor_parallel.rank} of {tensor_parallel.size}: start one job with as many "
            "processes as model_parallel."
        )
