"""Upstream's network on a CPU: PYNATIVE_MODE, with the references in place of the operators."""

from collections import Counter
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")
pytest.importorskip("mindspore")

from mindformers_glm.backends.ascend.backend import AscendBackend
from tests.ascend_contract.install import in_pynative_mode


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    """How often each reference was called."""
    with in_pynative_mode() as counted:
        yield counted


@pytest.fixture
def with_ascend(calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """`device_target="Ascend"` as on a machine with a card of 4 GB."""
    monkeypatch.setattr(AscendBackend, "is_present", lambda backend: True)
    monkeypatch.setattr(AscendBackend, "find_obstacle", lambda backend: "")
    monkeypatch.setattr(AscendBackend, "available_memory", lambda *_: 2**32)
    monkeypatch.setattr(AscendBackend, "dtypes", ("float32", "float16"))  # the references' types
    monkeypatch.setattr("mindformers_glm.backends.ascend.context.take_card", lambda device_id: None)
    return calls
