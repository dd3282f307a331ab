"""Which KV-cache blocks a sequence holds, and from when on others can find them."""

from collections.abc import Sequence as Items

from mindformers_glm.engine.block_keys import extend_block_keys
from mindformers_glm.engine.block_pool import BlockPool
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.sequence import Sequence


class KVCacheManager:
    """Fills the block tables of sequences from a pool.

    Full blocks are registered in the pool when the step that fills them is chosen, not when it is
    done: all K and V of a step are written before any row attends, so sequences that start in the
    same step can share them. If that step is then interrupted, `withdraw_unfilled` undoes it.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool) -> None:
        self._config = config
        self._pool = pool
        self._unfilled: set[int] = set()  # registered blocks that the step under way fills

    def can_ever_hold(self, sequence: Sequence) -> bool:
        """Whether the whole pool has room for the sequence's present tokens."""
        return self._num_missing_blocks(sequence) <= self._pool.num_blocks

    def count_room(self, sequence: Sequence) -> int:
        """Tokens that the sequence has blocks for, or could get them now."""
        return (len(sequence.block_table) + self._pool.num_free) * self._config.block_size

    def start(self, sequence: Sequence, num_spare: int) -> bool:
        """Give a sequence the blocks that hold its beginning, and free ones for the rest.

        Its last token is always computed, for its logits.

        Args:
            num_spare: blocks that must stay free.
        Returns:
            False, with nothing given, if too few are free.
        """
        if self._config.enable_prefix_caching:
            num_full = sequence.num_reusable_tokens // self._config.block_size
            self._extend_keys(sequence, num_full)
            sequence.block_table = self._pool.take_cached(sequence.block_keys[:num_full])
        num_shared_blocks = len(sequence.block_table)
        if not self.allocate(sequence, num_spare=num_spare):
            self.release(sequence)
            return False
        sequence.num_computed = num_shared_blocks * self._config.block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
        return True

    def allocate(self, sequence: Sequence, *, num_ahead: int = 0, num_spare: int = 0) -> bool:
        """Give the sequence blocks for all its tokens, or nothing if too few are free."""
        missing = self._num_missing_blocks(sequence, num_ahead)
        if missing + num_spare > self._pool.num_free:
            return False
        sequence.block_table += self._pool.allocate(missing)
        return True

    def fill(self, sequence: Sequence, end: int) -> None:
        """Register the blocks that the step under way completes, up to token `end`."""
        self._unfilled.update(self._register(sequence, sequence.num_computed, end))

    def end_step(self) -> None:
        """Note that the step's blocks hold what they are registered for, or are withdrawn."""
        self._unfilled.clear()

    def withdraw_unfilled(self, running: Items[Sequence]) -> list[Sequence]:
        """Withdraw the blocks that a step was to fill which never came to its end.

        Returns:
            The sequences that started on such blocks and have to start again, the youngest first.
        """
        if not self._unfilled:
            return []
        self._pool.forget(self._unfilled)
        return [
            sequence
            for sequence in reversed(running)
            if not self._unfilled.isdisjoint(
                sequence.block_table[: sequence.num_computed // self._config.block_size]
            )
        ]

    def keep_computed(self, sequence: Sequence, start: int) -> None:
        """Register the blocks that computed tokens from `start` on fill; free those behind."""
        self._register(sequence, start, sequence.num_computed)
        num_kept = -(-sequence.num_computed // self._config.block_size)
        self._pool.free(sequence.block_table[num_kept:])
        del sequence.block_table[num_kept:]

    def release(self, sequence: Sequence) -> None:
        """Take all blocks back."""
        self._pool.free(sequence.block_table)
        sequence.block_table = []

    def _num_missing_blocks(self, sequence: Sequence, num_ahead: int = 0) -> int:
        needed = -(-(sequence.num_tokens + num_ahead) // self._config.block_size)
        return needed - len(sequence.block_table)

    def _register(self, sequence: Sequence, start: int, end: int) -> list[int]:
        """Let others find the blocks that tokens [start, end) complete; return those registered."""
        if not self._config.enable_prefix_caching:
            return []
        first, last = start // self._config.block_size, end // self._config.block_size
        self._extend_keys(sequence, last)
        keys, blocks = sequence.block_keys[first:last], sequence.block_table[first:last]
        return [
            block
            for block, key in zip(blocks, keys, strict=True)
            if self._pool.register(block, key)
        ]

    def _extend_keys(self, sequence: Sequence, num_blocks: int) -> None:
        """Make sure of the keys of the sequence's first full blocks."""
        extend_block_keys(
            sequence.block_keys,
            sequence.token_ids,
            num_blocks,
            self._config.block_size,
            sequence.num_prompt_tokens if self._config.tells_prompts_apart else None,
        )
