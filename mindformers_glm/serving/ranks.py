"""A command on several ranks: started by itself, and at one with the launcher about signals."""

import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from mindformers_glm.config.environment import environment_of_ranks, launcher_pipe
from mindformers_glm.config.run_config import RunConfig, prepare_environment
from mindformers_glm.serving.predict import check_folder
from mindformers_glm.system.interrupts import on_interrupt


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


def follow_rank_0(config: RunConfig, llm_arguments: Mapping[str, Any]) -> int:
    """Take part in the steps of rank 0's engine until it is closed; return the exit code."""
    check_folder(config)
    prepare_environment(config)
    from mindformers_glm import LLM
    from mindformers_glm.engine.led_engine import follow

    llm = LLM(config.pretrained_model_dir, **llm_arguments)
    llm.warm_up()
    # Whoever signals all processes means rank 0, whose end is that of the others.
    on_interrupt(signal.SIG_IGN)
    follow(llm)
    return 0


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
