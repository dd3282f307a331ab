"""A worker that needs nothing of this project: MindSpore's ranks add numbers up again and again.

all_reduce_worker.py STEPS
"""

import sys

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.communication import get_group_size, get_rank, init


class Sum(nn.Cell):
    """The sum of a tensor over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.all_reduce(x)


if __name__ == "__main__":
    ms.set_context(mode=ms.GRAPH_MODE)
    init()
    print(f"rank {get_rank()} of {get_group_size()}", flush=True)
    total = Sum()
    for _ in range(int(sys.argv[1])):
        value = total(ms.Tensor(np.float32([get_rank() + 1]))).asnumpy()[0]
        print(f"sum {value}", flush=True)
