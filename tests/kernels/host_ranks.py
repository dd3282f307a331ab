"""Processes that exchange numbers through shared memory as ranks do, without a launcher."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.backends.cpu import host_ranks, library
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel

_TIMEOUT_S = 60
_MOST_WORDS = 16
# Spawned, not forked: OpenMP's threads would be missing in a copy.
_SPAWN = multiprocessing.get_context("spawn")


class Ranks:
    """Processes of one job; each runs a function of this module's kind on its group.

    Args:
        work: called in every process as work(group, has_joined) once they have met.
        hosts: which host each rank believes to be on; None: one.
    """

    def __init__(
        self,
        size: int,
        work: Callable[[ProcessGroup, bool], Any],
        timeout_s: int = _TIMEOUT_S,
        hosts: Sequence[int] | None = None,
    ) -> None:
        words = _SPAWN.RawArray("q", size * _MOST_WORDS)
        self._barrier = _SPAWN.Barrier(size)  # held: its name goes with it
        self._answers: list[Connection] = []
        self.processes: list[SpawnProcess] = []
        for rank in range(size):
            answer, told = _SPAWN.Pipe(duplex=False)
            environment = {"MS_NODE_TIMEOUT": str(timeout_s), "OMP_NUM_THREADS": "2"}
            environment["MS_NODE_RANK"] = str(0 if hosts is None else hosts[rank])
            given = (size, rank, self._barrier, words, work, environment, told)
            self.processes.append(_SPAWN.Process(target=_run, args=given))
            self._answers.append(answer)
        for process in self.processes:
            process.start()

    def result(self, rank: int) -> Any:
        """What a rank's work has returned, or the text of its error."""
        assert self._answers[rank].poll(_TIMEOUT_S), f"rank {rank} says nothing"
        return self._answers[rank].recv()

    def results(self) -> list[Any]:
        """Of all ranks, which end."""
        found = [self.result(rank) for rank in range(len(self.processes))]
        for process in self.processes:
            process.join(_TIMEOUT_S)
        return found

    def end(self) -> None:
        """End what still runs."""
        for process in self.processes:
            process.kill()
            process.join()


def _run(
    size: int,
    rank: int,
    barrier: Barrier,
    words: Any,
    work: Callable[[ProcessGroup, bool], Any],
    environment: dict[str, str],
    told: Connection,
) -> None:
    os.environ.update(environment)
    shared = np.frombuffer(words, np.int64).reshape(size, _MOST_WORDS)

    def gather(values: np.ndarray) -> np.ndarray:
        shared[rank, : len(values)] = values
        barrier.wait(_TIMEOUT_S)
        found = shared[:, : len(values)].copy()
        barrier.wait(_TIMEOUT_S)
        return found

    group = ProcessGroup(TensorParallel(size, rank), gather)
    try:
        told.send(work(group, host_ranks.join_ranks(group)))
    except RuntimeError as problem:
        told.send(str(problem))


def tell_names(group: ProcessGroup, has_joined: bool) -> tuple[bool, list[str]]:
    """Whether they joined, and what of the memory has a name."""
    return has_joined, [path.name for path in Path("/dev/shm").glob("*mindformers*")]


def meet(group: ProcessGroup, has_joined: bool) -> list[list[int]]:
    """Numbers that ranks give each other, again and again: the last ones."""
    gather, found = host_ranks.gather_rows(group), np.empty(0, np.int64)
    for turn in range(2000):
        found = gather(np.array([turn, group.rank]))
        assert (found[:, 0] == turn).all()
    return found.tolist()


def die(group: ProcessGroup, has_joined: bool) -> object:
    """Rank 1 is killed while the others wait for it."""
    if group.rank == 1:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return host_ranks.gather_rows(group)(np.array([1]))


def stay_away(group: ProcessGroup, has_joined: bool) -> object:
    """Rank 1 lives and does nothing."""
    if group.rank == 1:
        time.sleep(_TIMEOUT_S)
    return host_ranks.gather_rows(group)(np.array([1]))


def measure_waiting(group: ProcessGroup, has_joined: bool) -> float:
    """Seconds of a core that the others spend while rank 1 lets them wait for one."""
    gather = host_ranks.gather_rows(group)
    gather(np.array([1]))
    if group.rank == 1:
        time.sleep(1)
    begin = time.process_time()
    gather(np.array([1]))
    return time.process_time() - begin


def exchange_all(group: ProcessGroup, has_joined: bool) -> dict[str, np.ndarray]:
    """The results of every operator on this rank's part of every case."""
    from tests.kernels.test_exchange import run_cases

    library.load()
    return run_cases(group.rank, group.size)
