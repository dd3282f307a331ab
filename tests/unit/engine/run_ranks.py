"""Ranks of a job without processes: threads that gather through shared memory."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel

_Result = TypeVar("_Result")


def run_ranks(size: int, work: Callable[[ProcessGroup], _Result]) -> list[_Result]:
    """Run `work` once for each rank."""
    barrier = threading.Barrier(size)
    given: dict[int, np.ndarray] = {}

    def group(rank: int) -> ProcessGroup:
        def gather(values: np.ndarray) -> np.ndarray:
            given[rank] = values
            barrier.wait(timeout=30)
            gathered = np.stack([given[other] for other in range(size)])
            barrier.wait(timeout=30)
            return gathered

        return ProcessGroup(TensorParallel(size, rank), gather)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(group(rank)), range(size)))
