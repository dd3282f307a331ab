"""What ranks of several hosts send each other: MindSpore's collectives between CPU processes.

MindSpore 2.7.1 offers sums of float32 and float16, and all-gathers of these and int32, among all
processes of the job at once, over TCP: 0.15 GB/s. Every Cell takes one Tensor and gives one.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindformers_glm.backends.cpu.group_cut import GroupCut


class AllReduce(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.sum = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.sum(x)


class AllGather(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.gather = ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        return self.gather(x)


class GatherColumns(nn.Cell):
    def __init__(self, size: int, num_columns: int) -> None:
        super().__init__()
        self.size, self.num_columns = size, num_columns
        self.gather = ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        num_rows, part_size = x.shape
        parts = self.gather(x).reshape(self.size, num_rows, part_size)
        columns = parts.transpose(1, 0, 2).reshape(num_rows, self.size * part_size)
        return columns[:, : self.num_columns]  # without the padding of the last parts


class AppendMaxima(nn.Cell):
    """A column more: the largest magnitude of the row on any rank."""

    def __init__(self) -> None:
        super().__init__()
        self.gather = ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        own = ops.amax(ops.abs(x), axis=1)
        parts = self.gather(own).reshape(-1, x.shape[0])
        return ops.concat((x, ops.amax(parts, axis=0).reshape(-1, 1)), 1)


class ShareMaxima(nn.Cell):
    """Every rank sends the largest magnitudes of its first and its last group, row by row."""

    def __init__(self, cut: GroupCut, rank: int) -> None:
        super().__init__()
        self.first, self.last = (
            Tensor([place for place, one in enumerate(cut.groups) if one == which], ms.int32)
            for which in cut.groups[2 * rank : 2 * rank + 2]
        )
        self.num_first, self.num_last = cut.num_first, cut.num_last
        self.before, self.behind = cut.before, cut.behind
        self.size = len(cut.groups) // 2
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
