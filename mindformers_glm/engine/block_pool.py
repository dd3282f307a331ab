"""Who holds which block of the paged KV cache, and which blocks hold what others may need."""

from collections.abc import Iterable


class BlockPool:
    """The KV-cache blocks 0 .. num_blocks - 1, each held by any number of sequences.

    A full block can be registered under a key that says what is in it (block_keys.py). Others then
    hold it too instead of computing the same, and when nobody holds it any more it stays findable
    until its place is needed. So a block that is free is either unused or cached; unused ones are
    handed out first, the one freed last before others (it is most likely still in a CPU cache),
    then the cached one that was freed first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, None] = {}  # free blocks with a key, the one freed first in front
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._unused) + len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks for new content.

        Raises:
            ValueError: fewer are free; nothing is taken then.
        """
        if count > self.num_free:
            raise ValueError(f"cannot allocate {count} KV blocks, {self.num_free} are free")
        blocks = [self._pop_free() for _ in range(count)]
        for block in blocks:
            self._num_holders[block] = 1
        return blocks

    def take_cached(self, keys: Iterable[bytes]) -> list[int]:
        """Hold the blocks registered under `keys`, up to the first key that is not known."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            self._num_holders[block] += 1
            self._cached.pop(block, None)
            blocks.append(block)
        return blocks

    def register(self, block: int, key: bytes) -> bool:
        """Let others find the content of a held block; False if another block has it already.

        Raises:
            ValueError: nobody holds the block, or it is registered under another key.
        """
        if not self._num_holders[block] or self._key_of.get(block, key) != key:
            raise ValueError(f"KV block {block} is free or registered under another key")
        if self._block_of.setdefault(key, block) != block:
            return False
        self._key_of[block] = key
        return True

    def forget(self, blocks: Iterable[int]) -> None:
        """Withdraw registrations, whoever holds the blocks."""
        for block in blocks:
            if (key := self._key_of.pop(block, None)) is not None:
                del self._block_of[key]
            if block in self._cached:
                del self._cached[block]
                self._unused.append(block)

    def forget_all(self) -> None:
        """Withdraw all registrations: what the blocks hold is outdated."""
        self.forget(list(self._key_of))

    def free(self, blocks: Iterable[int]) -> None:
        """Give back blocks of one sequence, named in logical order.

        The last ones count as freed first: a text's beginning is of use without what follows.

        Raises:
            ValueError: nobody holds a block, so two owners believed to.
        """
        for block in reversed(list(blocks)):
            if not self._num_holders[block]:
                raise ValueError(f"KV block {block} is freed twice")
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            if block in self._key_of:
                self._cached[block] = None
            else:
                self._unused.append(block)

    def _pop_free(self) -> int:
        if self._unused:
            return self._unused.pop()
        block = next(iter(self._cached))
        self.forget([block])
        return self._unused.pop()
