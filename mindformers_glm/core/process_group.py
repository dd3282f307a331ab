"""The processes of one job, as those parts see it that have a number to agree on."""

from collections.abc import Callable, Sequence

import numpy as np

from mindformers_glm.core.sharding import TensorParallel


class ProcessGroup:
    """All ranks that run this program together; every one calls the same methods in turn.

    Args:
        gather: gives every rank the int64 [n] values of all: [size, n]; not used by a single rank.
    """

    def __init__(
        self,
        tensor_parallel: TensorParallel,
        gather: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.size = tensor_parallel.size
        self.rank = tensor_parallel.rank
        self._gather = gather
        assert self.size == 1 or gather is not None

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        """Return the values of every rank; waits until all have given theirs."""
        given = np.array(values, np.int64)
        gathered = given[None] if self._gather is None else self._gather(given)
        return gathered.tolist()

    def least(self, value: int) -> int:
        """Return the smallest of all ranks' values."""
        return min(values[0] for values in self.gather([value]))

    def wait(self) -> None:
        """Wait until every rank has come here."""
        self.gather([0])
