"""JOIN False: the launcher returns, and watches the job as a process of its own."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mindformers_glm.system.log import note


def run_in_background(run: Callable[[], int], log: Path) -> int:
    """Run in a child that no terminal reaches, its output in `log`.

    Returns:
        0 in the caller's process, at once. The child does not return.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        note(f"process {pid} watches the job in the background ({log}); kill {pid} ends it")
        return 0
    exit_code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        exit_code = run()
        note(f"the job ended with exit code {exit_code}")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(exit_code)
