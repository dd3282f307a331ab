"""The processes of a launched job find each other, whatever they run on."""

import sys
from types import TracebackType

from mindformers_glm.config.environment import failed_meeting
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.system.interrupts import leave_at_once


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
    leave_on_exceptions()


def leave_on_exceptions() -> None:
    """Let an exception that nobody catches end a program's rank at once, as our commands do.

    MindSpore would wait for the other ranks, which wait for this one.
    """
    report = sys.excepthook

    def report_and_leave(
        kind: type[BaseException], problem: BaseException, trace: TracebackType | None
    ) -> None:
        report(kind, problem, trace)
        if issubclass(kind, Exception):
            leave_at_once(1)

    sys.excepthook = report_and_leave
