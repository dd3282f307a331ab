"""Masks beside the network: none is lost or computed twice, whichever thread computes it."""

import threading
import time
from collections.abc import Sequence as Items
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mindformers_glm.engine.constraints import RowMask
from mindformers_glm.engine.token_masks import TokenMasks


class _SlowConstraint:
    """Takes a while, and notes who asked."""

    def __init__(self, seconds: float) -> None:
        self.threads: list[str] = []
        self._seconds = seconds

    def compute_masks(self, draft: Items[int]) -> list[RowMask]:
        self.threads.append(threading.current_thread().name)
        time.sleep(self._seconds)
        return [RowMask(np.ones(len(draft) + 1, bool), False)]


def _chunk(constraint: Any, draft: tuple[int, ...] = (), is_sampled: bool = True) -> Any:
    sequence = SimpleNamespace(constraint=constraint)
    return SimpleNamespace(sequence=sequence, draft=draft, is_sampled=is_sampled)


def test_without_constraints_there_are_no_masks_and_no_thread() -> None:
    masks = TokenMasks()
    masks.begin([_chunk(None), _chunk(_SlowConstraint(9), is_sampled=False)])
    assert masks.take() == {}
    assert masks._pool is None


@pytest.mark.parametrize("network_s", [0.0, 0.05, 0.3])
def test_each_mask_is_computed_once_whoever_does_it(network_s: float) -> None:
    masks = TokenMasks()
    constraints = [_SlowConstraint(0.02) for _ in range(6)]
    chunks = [_chunk(None), *(_chunk(c, (1,) * n) for n, c in enumerate(constraints))]
    masks.begin(chunks)
    time.sleep(network_s)
    taken = masks.take()
    assert [len(taken[place][0].allowed) for place in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    assert [len(constraint.threads) for constraint in constraints] == [1] * 6
    threads = {name for constraint in constraints for name in constraint.threads}
    if network_s == 0.3:  # the network took longer than all masks
        assert "MainThread" not in threads


def test_a_dropped_step_leaves_the_constraints_to_the_next() -> None:
    masks = TokenMasks()
    constraints = [_SlowConstraint(0.05) for _ in range(4)]
    masks.begin([_chunk(constraint) for constraint in constraints])
    time.sleep(0.02)
    masks.drop()
    assert sum(len(constraint.threads) for constraint in constraints) <= 1
    masks.begin([_chunk(constraint) for constraint in constraints])
    assert len(masks.take()) == 4
