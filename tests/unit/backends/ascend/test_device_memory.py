"""backends/ascend/device_memory.py: what MindSpore says of a card, as bytes that a run may take."""

from types import SimpleNamespace

import pytest

pytest.importorskip("mindspore")

from mindformers_glm.backends.ascend import device_memory

GIB = 2**30


def card(monkeypatch: pytest.MonkeyPatch, total: int, free: int, reserved: int, used: int) -> None:
    properties = SimpleNamespace(total_memory=total, free_memory=free)
    monkeypatch.setattr(device_memory.hal, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(device_memory.runtime, "memory_reserved", lambda: reserved)
    monkeypatch.setattr(device_memory.runtime, "memory_allocated", lambda: used)


def test_an_empty_card_is_free_but_for_a_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 64 * GIB, 62 * GIB, 0, 0)
    assert device_memory.free_bytes() == 61 * GIB


def test_what_the_pool_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 64 * GIB, 40 * GIB, 22 * GIB, 18 * GIB)
    assert device_memory.free_bytes() == 43 * GIB


def test_a_full_card_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 64 * GIB, GIB // 2, 0, 0)
    assert device_memory.free_bytes() == 0


def test_a_card_that_says_nothing_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, 0, 0, 0, 0)
    assert device_memory.free_bytes() is None
