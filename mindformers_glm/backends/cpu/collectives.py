"""What the ranks of a launched job make together in a step.

Ranks of one host do it through shared memory, by operators as any others (csrc/exchange.cc); those
of several hosts send each other messages (messages.py), which are nodes of the graph. Either way
every rank gets the same bits.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindformers_glm.backends.cpu import host_ranks, messages
from mindformers_glm.backends.cpu.group_cut import GroupCut
from mindformers_glm.backends.cpu.trace import Module, Operator, Value, call, exchange
from mindformers_glm.backends.meeting import meet_ranks
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import cut_columns, matrix_columns
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import RankError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.quantization_scheme import MIXED, TOKEN
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
    all_gather = messages.AllGather()

    def gather_by_messages(values: np.ndarray) -> np.ndarray:
        gathered = all_gather(Tensor(values.view(np.int32))).asnumpy()
        return gathered.view(np.int64).reshape(tensor_parallel.size, len(values))

    by_messages = ProcessGroup(tensor_parallel, _explained(gather_by_messages))
    if not host_ranks.join_ranks(by_messages):
        return by_messages
    return ProcessGroup(tensor_parallel, _explained(host_ranks.gather_rows(by_messages)))


def _explained(gather: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return explain_failed_exchange()(gather)


@contextmanager
def explain_failed_exchange() -> Iterator[None]:
    """Name what MindSpore only calls a failed kernel.

    Raises:
        RankError: an exchange that the block runs has failed.
    """
    try:
        yield
    except RuntimeError as problem:
        if failure := host_ranks.find_failure():
            raise RankError(
                f"The ranks cannot go on: {failure}; the logs of all ranks may say more."
            ) from problem
        if re.search("AllReduce|AllGather", str(problem)) is None:
            raise
        raise RankError(
            "Another rank did not send its part in time (MS_NODE_TIMEOUT seconds): it has ended, "
            "hangs, or another program has sent bytes to a port of this job; the logs of all ranks "
            "may say more."
        ) from problem


class AllReduce(Module):
    """Sum over all ranks; nothing where there is one.

    Args:
        width: axis 1 of what is summed.
    """

    def __init__(self, width: int, tensor_parallel: TensorParallel) -> None:
        super().__init__()
        self.is_needed = tensor_parallel.size > 1
        self.operator = Operator("glm_sum_ranks", width)
        self.cell = messages.AllReduce() if _sends_messages(self.is_needed) else None

    def construct(self, x: Value) -> Value:
        """float32 [max_rows, width], the same shape on every rank -> the same shape."""
        if not self.is_needed:
            return x
        return _call_or_exchange(self.operator, self.cell, x)


class GatherLogits(Module):
    """Put the ranks' parts of the vocabulary side by side; nothing where there is one rank."""

    def __init__(self, vocab_size: int, tensor_parallel: TensorParallel) -> None:
        super().__init__()
        size = tensor_parallel.size
        self.is_needed = size > 1
        self.operator = Operator("glm_gather_ranks", vocab_size)
        self.cell = (
            messages.GatherColumns(size, vocab_size) if _sends_messages(self.is_needed) else None
        )

    def construct(self, logits: Value) -> Value:
        """float32 [max_samples, vocab_size_per_partition] -> [max_samples, vocab_size]."""
        if not self.is_needed:
            return logits
        return _call_or_exchange(self.operator, self.cell, logits)


class ShareScales(Module):
    """The largest magnitude of every row on any rank, where a row's scale is of all its columns.

    Ranks share the columns of `name`. Then their integers are those of one process.

    Attributes:
        is_needed: whether the layer takes them.
    """

    def __init__(self, width: int, settings: RunnerSettings, name: str) -> None:
        super().__init__()
        scheme = settings.scheme_of(name)
        self.is_needed = settings.model_parallel > 1 and (
            scheme is not None and scheme.activation_scale in (TOKEN, MIXED)
        )
        self.operator = Operator("glm_row_maxima", 1)
        self.width, self.columns = width, Operator("glm_take_columns", width)
        self.cell = (
            None if not self.is_needed or host_ranks.are_joined() else messages.AppendMaxima()
        )

    def construct(self, x: Value) -> tuple[Value, Value | None]:
        """float32 [max_rows, width] -> the same, and [max_rows, 1] where these are needed."""
        if not self.is_needed:
            return x, None
        if self.cell is None:
            return x, _call_or_exchange(self.operator, None, x)
        both = exchange(self.cell, x)
        first, second = (np.array([begin], np.int32) for begin in (0, self.width))
        num_rows = both.num_rows
        return (
            call(self.columns, both, first, num_rows),
            call(Operator("glm_take_columns", 1), both, second, num_rows),
        )


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
        self.is_needed = scheme is not None and own != wide
        self.operator = Operator("glm_share_groups", self.width)
        self.cut = self.cell = None
        if scheme is None or not self.is_needed:
            return
        cut = GroupCut.of(own, wide, rank, scheme.activation_group)
        if host_ranks.are_joined():
            self.cut = cut.as_operand()
        else:
            self.cell = messages.ShareMaxima(cut, rank)

    def construct(self, x: Value) -> Value:
        """float32 [max_rows, own columns] -> [max_rows, width]."""
        if not self.is_needed:
            return x
        if self.cell is not None:
            return exchange(self.cell, x)
        return call(self.operator, x, self.cut, x.num_rows)


def _sends_messages(is_needed: bool) -> bool:
    return is_needed and not host_ranks.are_joined()


def _call_or_exchange(operator: Operator, cell: nn.Cell | None, x: Value) -> Value:
    return call(operator, x, x.num_rows) if cell is None else exchange(cell, x)
