"""The masks of a step's constrained rows, computed while the network computes their logits."""

from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor

from mindformers_glm.engine.constraints import RowMask
from mindformers_glm.engine.scheduler import Chunk

StepMasks = dict[int, list[RowMask]]  # by the chunk's place in the step


class TokenMasks:
    """A thread beside the engine's that computes masks; there is none before a request needs it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: Future[StepMasks] | None = None

    def begin(self, chunks: Items[Chunk]) -> None:
        """Start with a step's masks; `take` must follow before anything uses the constraints."""
        assert self._under_way is None, "the masks of the step before are taken"
        if not any(_is_constrained(chunk) for chunk in chunks):
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="token masks")
        self._under_way = self._pool.submit(_compute, chunks)

    def take(self) -> StepMasks:
        """Wait for the masks of the step that was begun, and return them."""
        under_way, self._under_way = self._under_way, None
        return {} if under_way is None else under_way.result()


def _is_constrained(chunk: Chunk) -> bool:
    return chunk.is_sampled and chunk.sequence.constraint is not None


def _compute(chunks: Items[Chunk]) -> StepMasks:
    return {
        place: chunk.sequence.constraint.compute_masks(chunk.draft)
        for place, chunk in enumerate(chunks)
        if chunk.is_sampled and chunk.sequence.constraint is not None
    }
