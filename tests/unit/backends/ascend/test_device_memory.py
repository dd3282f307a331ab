"""backends/ascend/device_memory.py: what MindSpore says of a card, as bytes that a run may take."""

import os
from types import SimpleNamespace

import pytest

pytest.importorskip("mindspore")

from mindformers_glm.backends.ascend import device_memory
from mindformers_glm.backends.ascend.backend import AscendBackend
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel

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


def test_weights_on_their_way_to_the_card_do_not_count_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, group = AscendBackend(), ProcessGroup(TensorParallel())
    card(monkeypatch, 64 * GIB, 62 * GIB, 0, 0)
    assert backend.available_memory(group) == 61 * GIB
    assert backend.available_memory(group, 18 * GIB) == 61 * GIB  # nothing is there yet
    card(monkeypatch, 64 * GIB, 44 * GIB, 18 * GIB, 18 * GIB)
    assert backend.available_memory(group, 18 * GIB) == 61 * GIB


def test_what_mindspore_prints_at_its_first_step_is_no_result(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Printing:
        def asnumpy(self) -> None:
            os.write(1, b"[MS_ALLOC_CONF]config: enable_vmm:False\n")

    monkeypatch.setattr(device_memory.ops, "zeros", lambda *_: Printing())
    card(monkeypatch, 64 * GIB, 62 * GIB, 0, 0)
    device_memory.free_bytes()
    said = capfd.readouterr()
    assert said.out == ""
    assert "enable_vmm" in said.err
