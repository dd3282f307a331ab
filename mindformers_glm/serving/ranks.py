"""A command on several ranks: started by itself, and at one with the launcher about signals."""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from mindformers_glm.config.environment import environment_of_ranks, launcher_pipe


class RankStarter:
    """Starts the command of this process again, in several processes; for `load_run_config`.

    Args:
        words: of the command line, with the command's name.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    def __call__(self, num_ranks: int) -> NoReturn:
        """Become the launcher of so many processes: its exit code is this command's."""
        command = shlex.join([sys.executable, "-m", "mindformers_glm", *self._words])
        launcher = [sys.executable, "-m", "mindformers_glm.launcher"]
        environment = environment_of_ranks()
        arguments = ["--worker_num", str(num_ranks), command]
        if not environment.get("MASTER_PORT"):
            arguments = ["--master_port", "auto", *arguments]
        os.execve(sys.executable, [*launcher, *arguments], environment)


def tell_launcher(wish: str) -> None:
    """Say once how this rank takes signals, by a word of launcher/wishes.py."""
    pipe = launcher_pipe()
    if pipe is not None:
        with suppress(OSError):  # it has ended, and this process will
            os.write(pipe, f"{wish}\n".encode())


def ends_by_signal(patience_s: float) -> None:
    """SIGINT and SIGTERM end this rank, and it the job, within a time."""
    tell_launcher(f"ends {patience_s:g}")


def stops_by_interrupt() -> None:
    """SIGINT is for this rank, which goes on."""
    tell_launcher("interrupts")
