import pytest

from mindformers_glm.engine.block_pool import BlockPool


def test_blocks_are_handed_out_once() -> None:
    pool = BlockPool(4)
    assert sorted(pool.allocate(3) + pool.allocate(1)) == [0, 1, 2, 3]
    assert pool.num_free == 0


def test_too_large_an_allocation_takes_nothing() -> None:
    pool = BlockPool(2)
    with pytest.raises(ValueError, match="cannot allocate 3 KV blocks, 2 are free"):
        pool.allocate(3)
    assert pool.num_free == 2


def test_freed_blocks_come_back() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(2)
    pool.free(blocks[:1])
    assert pool.allocate(1) == blocks[:1]


def test_freeing_twice_is_noticed() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(ValueError, match="freed twice"):
        pool.free(blocks)
