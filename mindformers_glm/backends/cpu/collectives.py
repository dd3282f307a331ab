"""What the ranks of a launched job send each other: MindSpore's collectives between CPU processes.

MindSpore 2.7.1 offers sums of float32 and float16, and all-gathers of these and int32, among all
processes of the job at once, over TCP. Every rank gets the same bits.
"""

from functools import cache

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as ms_ops
from mindspore.communication import get_group_size, get_rank, init

from mindformers_glm.config.environment import failed_meeting
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel


@cache
def connect(tensor_parallel: TensorParallel) -> ProcessGroup:
    """Find the other ranks by what the launcher has put into the environment; waits for them.

    Raises:
        ConfigError: they cannot be found, or the job has another number of ranks.
    """
    if tensor_parallel.size == 1:
        return ProcessGroup(tensor_parallel)
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
    all_gather = _AllGather()

    def gather(values: np.ndarray) -> np.ndarray:
        gathered = all_gather(Tensor(values.view(np.int32))).asnumpy()
        return gathered.view(np.int64).reshape(found.size, len(values))

    return ProcessGroup(tensor_parallel, gather)


class AllReduce(nn.Cell):
    """Sum over all ranks; where there is one, an OperatorSequence leaves it out."""

    def __init__(self, tensor_parallel: TensorParallel) -> None:
        super().__init__()
        self.is_split = tensor_parallel.size > 1
        if self.is_split:
            self.sum = ms_ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        """float32 of any shape, the same on every rank -> the same shape."""
        return self.sum(x)


class GatherLogits(nn.Cell):
    """Put the ranks' parts of the vocabulary side by side; nothing where there is one rank."""

    def __init__(self, tensor_parallel: TensorParallel) -> None:
        super().__init__()
        self.size = tensor_parallel.size
        if self.size > 1:
            self.gather = ms_ops.AllGather()

    def construct(self, logits: Tensor) -> Tensor:
        """float32 [max_samples, vocab_size / size] -> [max_samples, vocab_size]."""
        if self.size == 1:
            return logits
        num_rows, part_size = logits.shape
        parts = self.gather(logits).reshape(self.size, num_rows, part_size)
        return parts.transpose(1, 0, 2).reshape(num_rows, self.size * part_size)


class _AllGather(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.gather = ms_ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        return self.gather(x)
