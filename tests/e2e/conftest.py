"""An empty folder for each test, and processes that run there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.run_process import REPO, Starter


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder to run in."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def start(work: Path) -> Starter:
    """Start `python run_mindformer.py ...`, or another program, in the folder `work`."""

    def start(
        *argv: str, program: tuple[str, ...] = (str(REPO / "run_mindformer.py"),)
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *program, *argv],
            cwd=work,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
