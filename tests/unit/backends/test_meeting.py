"""What a rank does when it fails."""

import subprocess
import sys

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
