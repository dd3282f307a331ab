"""Who holds which block of the paged KV cache."""

from collections.abc import Iterable


class BlockPool:
    """Free list of the KV-cache blocks 0 .. num_blocks - 1.

    Blocks freed last are handed out first: they are the ones most likely still in a CPU cache.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks.

        Raises:
            ValueError: fewer are free; nothing is taken then.
        """
        if count > len(self._free):
            raise ValueError(f"cannot allocate {count} KV blocks, {len(self._free)} are free")
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._is_free[block] = False
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: a block is free already, so two owners believed to hold it.
        """
        for block in blocks:
            if self._is_free[block]:
                raise ValueError(f"KV block {block} is freed twice")
            self._is_free[block] = True
            self._free.append(block)
