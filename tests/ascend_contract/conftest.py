"""Upstream's network on a CPU: PYNATIVE_MODE, with the references in place of the operators."""

from collections import Counter
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")
pytest.importorskip("mindspore")

import mindspore as ms

from mindformers_glm.backends.ascend.backend import AscendBackend
from tests.ascend_contract.install import contract_references


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each reference was called."""
    monkeypatch.setenv("ENFORCE_EAGER", "True")
    monkeypatch.setenv("RUN_MODE", "predict")  # as the backend does when it connects
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    with contract_references() as counted:
        yield counted
    ms.set_context(mode=mode)


@pytest.fixture
def with_ascend(calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """`device_target="Ascend"` as on a machine with a card of 4 GB."""
    monkeypatch.setattr(AscendBackend, "is_present", lambda backend: True)
    monkeypatch.setattr(AscendBackend, "find_obstacle", lambda backend: "")
    monkeypatch.setattr(AscendBackend, "available_memory", lambda *_: 2**32)
    monkeypatch.setattr(AscendBackend, "dtypes", ("float32", "float16"))  # the references' types
    monkeypatch.setattr("mindformers_glm.backends.ascend.context.take_card", lambda device_id: None)
    return calls
