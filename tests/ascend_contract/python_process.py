"""A Python process of its own, which finds this repository."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO


def run_python(*words: str, folder: Path = REPO, **environ: str) -> list[str]:
    """What it writes to stdout, in lines; it has to end well.

    Args:
        folder: where it works.
        environ: set besides what this process has.
    """
    ended = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPO)} | environ,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout.splitlines()
