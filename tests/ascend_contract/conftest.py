"""Upstream's network on a CPU: PYNATIVE_MODE, with the references in place of the operators."""

from collections import Counter
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")
pytest.importorskip("mindspore")

from tests.ascend_contract.card import card_of_references
from tests.ascend_contract.install import in_pynative_mode


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    """How often each reference was called."""
    with in_pynative_mode() as counted:
        yield counted


@pytest.fixture
def with_ascend() -> Iterator[Counter[str]]:
    """`device_target="Ascend"` as on a machine with a card; how often each reference was called."""
    with card_of_references() as counted:
        yield counted
