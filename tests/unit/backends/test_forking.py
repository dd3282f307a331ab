"""A child of fork() is told from its parent, and from a process of its own."""

import os
import subprocess
import sys

from mindformers_glm.backends.forking import check_not_forked
from mindformers_glm.core.errors import UnsupportedError


def _fork_and_check() -> int:
    """Exit code of a child: 0 where it may run, 7 where it is refused each time it asks."""
    pid = os.fork()
    if pid == 0:
        refusals = 0
        for _ in range(2):
            try:
                check_not_forked()
            except UnsupportedError:
                refusals += 1
        os._exit({0: 0, 2: 7}.get(refusals, 1))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_of_a_process_that_runs_models_is_refused() -> None:
    check_not_forked()
    assert _fork_and_check() == 7
    check_not_forked()


def test_a_child_of_a_process_without_a_model_may_run() -> None:
    program = (
        "from tests.unit.backends.test_forking import _fork_and_check; "
        "import sys; sys.exit(_fork_and_check())"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
