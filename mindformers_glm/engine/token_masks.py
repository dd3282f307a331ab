"""The masks of a step's constrained rows, computed while the network computes their logits."""

from collections import deque
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor

from mindformers_glm.engine.constraints import Constraint, RowMask
from mindformers_glm.engine.scheduler import Chunk
from mindformers_glm.system.interrupts import delay_interrupts

# By the chunk's place in the step; a defect in finding those of one is its own request's.
StepMasks = dict[int, list[RowMask] | Exception]


class TokenMasks:
    """A thread beside the engine's that computes masks; there is none before a request needs it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: tuple[_StepWork, Future[None]] | None = None

    def begin(self, chunks: Items[Chunk]) -> None:
        """Start with a step's masks; `take` must follow before anything uses the constraints."""
        assert self._under_way is None, "the masks of the step before are taken"
        work = _StepWork(chunks)
        if not work.waiting:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="token masks")
        self._under_way = work, self._pool.submit(work.run)

    def take(self) -> StepMasks:
        """Return the masks of the step that was begun; none is left to be waited for.

        Where the thread found no processor while the network was at work, waiting for it would
        take longer than the masks: this thread computes those that are left.
        """
        if self._under_way is None:
            return {}
        (work, thread_work), self._under_way = self._under_way, None
        work.run()
        if not thread_work.cancel():
            thread_work.result()
        return work.masks

    def drop(self) -> None:
        """Give up the masks of a step that was interrupted, and leave the constraints alone."""
        if self._under_way is None:
            return
        with delay_interrupts():  # a constraint must not stay behind guesses of that step
            (work, thread_work), self._under_way = self._under_way, None
            work.waiting.clear()
            if not thread_work.cancel():
                thread_work.result()


class _StepWork:
    """The rows of one step, which any number of threads may work on."""

    def __init__(self, chunks: Items[Chunk]) -> None:
        self.masks: StepMasks = {}
        self.waiting: deque[tuple[int, Constraint, Chunk]] = deque(
            (place, chunk.sequence.constraint, chunk)
            for place, chunk in enumerate(chunks)
            if chunk.is_sampled and chunk.sequence.constraint is not None
        )

    def run(self) -> None:
        """Compute masks until none is left that no thread has begun."""
        while True:
            try:
                place, constraint, chunk = self.waiting.popleft()
            except IndexError:
                return
            try:
                self.masks[place] = constraint.compute_masks(chunk.draft)
            except Exception as problem:
                self.masks[place] = problem
