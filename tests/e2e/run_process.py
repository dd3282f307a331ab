"""The command line in a process of its own, and what it leaves."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
Starter = Callable[..., subprocess.Popen[str]]


@dataclass(frozen=True)
class Run:
    """A finished process: exit code, lines of stdout, notes and other lines of stderr."""

    exit_code: int
    stdout: list[str]
    notes: list[str]
    errors: list[str]


def finish(process: subprocess.Popen[str]) -> Run:
    """Wait for a process and sort its output."""
    stdout, stderr = process.communicate(timeout=300)
    lines = stderr.splitlines()
    notes = [line for line in lines if line.startswith("mindformers_glm: ")]
    others = [line for line in lines if line not in notes]
    return Run(process.returncode, stdout.splitlines(), notes, others)
