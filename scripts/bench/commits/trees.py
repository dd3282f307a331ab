"""Trees of two commits, built and ready to run, and how a program is run under one of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import REPO

_END_S = 30  # for a job to end once it is told to


class JobError(Exception):
    """A tree could not be built, or a program under it failed; says what it last wrote."""


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The tree of a commit as a worktree `folder`, its C++ library built; removed afterwards.

    Args:
        commit: what git takes for one; or a folder with a built tree, which is used as it is.
    """
    if Path(commit).is_dir():
        yield Path(commit).resolve()
        return
    try:
        _run_git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        run_job("the build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], folder)
        yield folder
    finally:
        if folder.exists():
            _run_git("worktree", "remove", "--force", str(folder))


def describe_tree(tree: Path) -> str:
    """The commit of a tree, as git names it."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    return found.stdout.strip() or str(tree)


def environment_of(tree: Path, *folders: str, **variables: str) -> dict[str, str]:
    """The environment in which `import mindformers_glm` is the tree's.

    Args:
        folders: of the tree, whose modules can be imported too.
        variables: set besides.
    """
    paths = os.pathsep.join([str(tree), *(str(tree / folder) for folder in folders)])
    own = {"PYTHONPATH": paths, "PYTHON": sys.executable, "GLOG_v": "3"}
    return os.environ | own | variables


def run_job(
    name: str, command: list[str], work: Path, environment: dict[str, str] | None = None
) -> str:
    """Run a program in the folder `work` to its end and return its stdout.

    Raises:
        JobError: it failed.
    """
    job = subprocess.Popen(
        command,
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = job.communicate()
    except BaseException:
        job.send_signal(signal.SIGTERM)  # a launcher then ends its ranks
        job.communicate(timeout=_END_S)
        raise
    if job.returncode != 0:
        raise JobError(f"{name} ended with code {job.returncode}:\n{stderr[-3000:]}")
    return stdout


def _run_git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=REPO, check=True)
