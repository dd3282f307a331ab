"""What is said of an exchange that fails; the collectives themselves are tested in tests/tp."""

import pytest

pytest.importorskip("mindspore")

from mindformers_glm.backends.cpu import host_ranks
from mindformers_glm.backends.cpu.collectives import explain_failed_exchange
from mindformers_glm.core.errors import RankError


def test_a_failed_exchange_is_named() -> None:
    with pytest.raises(RankError, match="MS_NODE_TIMEOUT"), explain_failed_exchange():
        raise RuntimeError("Launch kernel failed: Default/AllGather-op0")


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="Launch kernel"), explain_failed_exchange():
        raise RuntimeError("Launch kernel failed: Default/Custom-op3")


def test_a_failure_among_ranks_of_one_host_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_ranks, "find_failure", lambda: "rank 1 has ended")
    with (
        pytest.raises(RankError, match="rank 1 has ended; the logs of all ranks"),
        explain_failed_exchange(),
    ):
        raise RuntimeError("Launch kernel failed: Default/Custom-op3")
