import itertools
import random

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


def _register(pool: BlockPool, *keys: bytes) -> list[int]:
    """Blocks of one sequence that are registered under `keys`."""
    blocks = pool.allocate(len(keys))
    assert all(pool.register(block, key) for block, key in zip(blocks, keys, strict=True))
    return blocks


def test_a_registered_block_is_held_by_several_and_free_when_all_gave_it_back() -> None:
    pool = BlockPool(2)
    (block,) = _register(pool, b"a")
    assert pool.take_cached([b"a"]) == [block]
    pool.free([block])
    assert pool.num_free == 1
    pool.free([block])
    assert pool.num_free == 2
    with pytest.raises(ValueError, match="freed twice"):
        pool.free([block])


def test_only_an_unbroken_run_from_the_first_key_on_is_taken() -> None:
    pool = BlockPool(4)
    blocks = _register(pool, b"a", b"b", b"d")
    assert pool.take_cached([b"a", b"b", b"c", b"d"]) == blocks[:2]
    assert pool.take_cached([b"x", b"a"]) == []


def test_a_freed_block_is_found_until_its_place_is_needed() -> None:
    pool = BlockPool(2)
    (block,) = _register(pool, b"a")
    pool.free([block])
    (other,) = pool.allocate(1)
    assert other != block
    assert pool.take_cached([b"a"]) == [block]
    pool.free([block])
    assert pool.allocate(1) == [block]
    assert pool.take_cached([b"a"]) == []


def test_the_block_freed_first_makes_place_first_and_a_texts_end_before_its_beginning() -> None:
    pool = BlockPool(4)
    old, young = _register(pool, b"a", b"b"), _register(pool, b"c", b"d")
    pool.free(old)
    pool.free(young)
    assert pool.allocate(3) == [old[1], old[0], young[1]]
    assert pool.take_cached([b"c", b"d"]) == [young[0]]


def test_a_block_in_use_again_is_the_youngest_when_it_is_freed() -> None:
    pool = BlockPool(2)
    first, second = _register(pool, b"a"), _register(pool, b"b")
    pool.free(first)
    pool.free(second)
    pool.free(pool.take_cached([b"a"]))
    assert pool.allocate(1) == second


def test_of_two_blocks_with_the_same_content_the_first_stays_known() -> None:
    pool = BlockPool(2)
    (first,) = _register(pool, b"a")
    (second,) = pool.allocate(1)
    assert not pool.register(second, b"a")
    assert pool.take_cached([b"a"]) == [first]


def test_a_free_block_and_one_with_another_key_cannot_be_registered() -> None:
    pool = BlockPool(2)
    (block,) = _register(pool, b"a")
    assert pool.register(block, b"a")
    for wrong, key in ((block, b"b"), (1 - block, b"b")):
        with pytest.raises(ValueError, match="free or registered under another key"):
            pool.register(wrong, key)


def test_forgotten_blocks_are_unused() -> None:
    pool = BlockPool(3)
    held, free = _register(pool, b"a"), _register(pool, b"b")
    pool.free(free)
    pool.forget_all()
    assert pool.take_cached([b"a"]) == pool.take_cached([b"b"]) == []
    assert pool.num_free == 2
    pool.free(held)
    assert pool.num_free == 3


class _SlowPool:
    """What BlockPool must do, with nothing but lists."""

    def __init__(self, num_blocks: int) -> None:
        self.holders: list[int] = [0] * num_blocks
        self.keys: list[bytes | None] = [None] * num_blocks
        self.freed: list[int] = list(
            range(num_blocks)
        )  # free blocks, the one freed last at the end

    def may_be_allocated(self) -> list[int]:
        """The blocks that may be handed out next."""
        unused = [block for block in self.freed if self.keys[block] is None]
        return unused or self.freed[:1]


@pytest.mark.parametrize("seed", range(20))
def test_random_use_agrees_with_a_slow_model(seed: int) -> None:
    rng = random.Random(seed)
    num_blocks = rng.randint(1, 12)
    pool, slow = BlockPool(num_blocks), _SlowPool(num_blocks)
    held: list[list[int]] = []
    texts = [[bytes([text, index]) for index in range(4)] for text in range(5)]
    for _ in range(400):
        action = rng.choice(["allocate", "take", "register", "free", "forget"])
        if action == "allocate":
            count = rng.randint(0, 3)
            if count > len(slow.freed):
                with pytest.raises(ValueError, match="cannot allocate"):
                    pool.allocate(count)
                continue
            held.append(pool.allocate(count))
            for block in held[-1]:
                assert block in slow.may_be_allocated()
                slow.freed.remove(block)
                slow.holders[block], slow.keys[block] = 1, None
        elif action == "take":
            keys = rng.choice(texts)
            held.append(pool.take_cached(keys))
            run = list(itertools.takewhile(lambda key: key in slow.keys, keys))
            assert held[-1] == [slow.keys.index(key) for key in run]
            for block in held[-1]:
                slow.holders[block] += 1
                if block in slow.freed:
                    slow.freed.remove(block)
        elif action == "register" and any(held):
            block = rng.choice([block for blocks in held for block in blocks])
            key = slow.keys[block] or rng.choice(rng.choice(texts))
            is_new = slow.keys[block] == key or key not in slow.keys
            assert pool.register(block, key) == is_new
            if is_new:
                slow.keys[block] = key
        elif action == "free" and held:
            blocks = held.pop(rng.randrange(len(held)))
            pool.free(blocks)
            for block in reversed(blocks):
                slow.holders[block] -= 1
                if slow.holders[block] == 0:
                    slow.freed.append(block)
        elif action == "forget" and rng.random() < 0.2:
            some = [block for block in range(num_blocks) if rng.random() < 0.5]
            pool.forget(some)
            for block in some:
                slow.keys[block] = None
        assert pool.num_free == len(slow.freed)
        in_use = sum(holders > 0 for holders in slow.holders)
        assert pool.num_free + in_use == num_blocks
    for blocks in held:
        pool.free(blocks)
    assert pool.num_free == num_blocks
    assert sorted(pool.allocate(num_blocks)) == list(range(num_blocks))
