"""What a rank does when it fails; the collectives themselves are tested in tests/tp."""

import subprocess
import sys

import pytest

pytest.importorskip("mindspore")

from mindformers_glm.backends.cpu.collectives import explain_failed_exchange
from mindformers_glm.core.errors import RankError

_FAILS = """
import atexit, time
from mindformers_glm.backends.meeting import leave_on_exceptions
leave_on_exceptions()
atexit.register(time.sleep, 300)  # as MindSpore waits for the other ranks
print("said", flush=False)
raise ValueError("bad luck")
"""


def test_an_exception_that_nobody_catches_ends_a_rank_at_once() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _FAILS], capture_output=True, text=True, timeout=200, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "said\n")
    assert ended.stderr.count("ValueError: bad luck") == 1


def test_a_failed_exchange_is_named() -> None:
    with pytest.raises(RankError, match="MS_NODE_TIMEOUT"), explain_failed_exchange():
        raise RuntimeError("Launch kernel failed: Default/AllGather-op0")


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="Launch kernel"), explain_failed_exchange():
        raise RuntimeError("Launch kernel failed: Default/Custom-op3")
