"""What the ranks of a launched job send each other: MindSpore's collectives between CPU processes.

MindSpore 2.7.1 offers sums of float32 and float16, and all-gathers of these and int32, among all
processes of the job at once, over TCP. Every rank gets the same bits.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindformers_glm.backends.cpu.trace import Module, Value, exchange
from mindformers_glm.backends.meeting import meet_ranks
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import cut_columns, matrix_columns
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import RankError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel


def connect(tensor_parallel: TensorParallel) -> ProcessGroup:
    """Set MindSpore's context up, and find and wait for the other ranks of a launched job.

    They are found by what the launcher has put into the environment.

    Raises:
        ConfigError: they cannot be found, or the job has another number of ranks.
    """
    # O0 keeps the graph as written, without fusion passes.
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    # MindSpore refuses this once anything has run, even if it changes nothing.
    if ms.get_context("device_target") != "CPU":
        ms.set_device("CPU")
    return _meet(tensor_parallel)


@cache
def _meet(tensor_parallel: TensorParallel) -> ProcessGroup:
    if tensor_parallel.size == 1:
        return ProcessGroup(tensor_parallel)
    meet_ranks(tensor_parallel)
    all_gather = _AllGather()

    def gather(values: np.ndarray) -> np.ndarray:
        with explain_failed_exchange():
            gathered = all_gather(Tensor(values.view(np.int32))).asnumpy()
        return gathered.view(np.int64).reshape(tensor_parallel.size, len(values))

    return ProcessGroup(tensor_parallel, gather)


@contextmanager
def explain_failed_exchange() -> Iterator[None]:
    """Name what MindSpore only calls a failed kernel.

    Raises:
        RankError: an exchange that the block runs has failed.
    """
    try:
        yield
    except RuntimeError as problem:
        if re.search("AllReduce|AllGather", str(problem)) is None:
            raise
        raise RankError(
            "Another rank did not send its part in time (MS_NODE_TIMEOUT seconds): it has ended, "
            "hangs, or another program has sent bytes to a port of this job; the logs of all ranks "
            "may say more."
        ) from problem


class AllReduce(Module):
    """Sum over all ranks; nothing where there is one."""

    def __init__(self, tensor_parallel: TensorParallel) -> None:
        super().__init__()
        self.sum = _AllReduce() if tensor_parallel.size > 1 else None

    def construct(self, x: Value) -> Value:
        """float32 of any shape, the same on every rank -> the same shape."""
        return x if self.sum is None else exchange(self.sum, x)


class GatherLogits(Module):
    """Put the ranks' parts of the vocabulary side by side; nothing where there is one rank."""

    def __init__(self, vocab_size: int, tensor_parallel: TensorParallel) -> None:
        super().__init__()
        size = tensor_parallel.size
        self.gather = _GatherColumns(size, vocab_size) if size > 1 else None

    def construct(self, logits: Value) -> Value:
        """float32 [max_samples, vocab_size_per_partition] -> [max_samples, vocab_size]."""
        return logits if self.gather is None else exchange(self.gather, logits)


class ShareGroups(Module):
    """Let activations whose columns are cut have the scales of the whole rows.

    Where a group of columns that share a scale lies on several ranks, each is given columns beside
    its own, up to the group's borders, which hold the largest magnitude of the group on any rank.
    The layer behind has weights of zero there, so that they count for the scale alone. Where no
    group is cut, or nothing is quantized, there is nothing to do: inner columns are cut between
    groups, attention heads too where head_dim is a multiple of the group.

    Args:
        block: which block of an axis the columns are (core/sharding.py).
        name: of the linear layer.

    Attributes:
        width: how many columns the layer takes.
    """

    def __init__(self, config: GlmConfig, block: str, settings: RunnerSettings, name: str) -> None:
        super().__init__()
        scheme = settings.scheme_of(name)
        own = cut_columns(config, block, settings.model_parallel)
        wide = matrix_columns(config, block, settings.model_parallel, scheme)
        rank = settings.model_parallel_rank
        self.width = len(wide[rank])
        self.share = (
            None
            if scheme is None or own == wide
            else _ShareMaxima(own, wide, rank, scheme.activation_group)
        )

    def construct(self, x: Value) -> Value:
        """float32 [max_rows, own columns] -> [max_rows, width]."""
        return x if self.share is None else exchange(self.share, x)


class _AllReduce(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.sum = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.sum(x)


class _AllGather(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.gather = ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        return self.gather(x)


class _GatherColumns(nn.Cell):
    def __init__(self, size: int, num_columns: int) -> None:
        super().__init__()
        self.size, self.num_columns = size, num_columns
        self.gather = ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        num_rows, part_size = x.shape
        parts = self.gather(x).reshape(self.size, num_rows, part_size)
        columns = parts.transpose(1, 0, 2).reshape(num_rows, self.size * part_size)
        return columns[:, : self.num_columns]  # without the padding of the last parts


class _ShareMaxima(nn.Cell):
    """Every rank sends the largest magnitudes of its first and its last group, row by row."""

    def __init__(self, own: Sequence[range], wide: Sequence[range], rank: int, group: int) -> None:
        super().__init__()
        # Of rank 0 the first and the last group, of rank 1, ...
        groups = [column // group for cut in own for column in (cut.start, cut.stop - 1)]
        mine = groups[2 * rank : 2 * rank + 2]
        self.first, self.last = (
            Tensor([place for place, one in enumerate(groups) if one == which], ms.int32)
            for which in mine
        )
        self.num_first = min((mine[0] + 1) * group, own[rank].stop) - own[rank].start
        self.num_last = own[rank].stop - max(mine[1] * group, own[rank].start)
        self.before = own[rank].start - wide[rank].start
        self.behind = wide[rank].stop - own[rank].stop
        self.size = len(own)
        self.gather = ops.AllGather()
        self.depend = ops.Depend()

    def construct(self, x: Tensor) -> Tensor:
        num_rows, width = x.shape
        magnitudes = ops.abs(x)
        first = ops.amax(magnitudes[:, : self.num_first], axis=1, keepdims=True)
        last = ops.amax(magnitudes[:, width - self.num_last :], axis=1, keepdims=True)
        parts = self.gather(ops.concat((first, last), 1)).reshape(self.size, num_rows, 2)
        maxima = parts.transpose(1, 0, 2).reshape(num_rows, 2 * self.size)
        x = self.depend(x, maxima)  # a rank that cuts no group takes part all the same
        if self.before > 0:
            most = ops.amax(ops.gather(maxima, self.first, 1), axis=1, keepdims=True)
            x = ops.concat((ops.tile(most, (1, self.before)), x), 1)
        if self.behind > 0:
            most = ops.amax(ops.gather(maxima, self.last, 1), axis=1, keepdims=True)
            x = ops.concat((x, ops.tile(most, (1, self.behind))), 1)
        return x
