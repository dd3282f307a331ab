"""main.py with the names of the ChatGLM2 guide: --mode, --model_path, --tp_size.

It starts its ranks itself, or is started by our launcher or by torchrun as often as --tp_size says.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mindformers_glm.config.environment import join_torchrun
from mindformers_glm.config.sentence_parser import CommandLineError, SentenceParser
from mindformers_glm.core.errors import GlmError
from mindformers_glm.launcher.child import start_child
from mindformers_glm.serving import cli
from mindformers_glm.system.log import write_line

_OTHER_MODES = ("precision_single", "precision_dataset", "performance")


def main(argv: Sequence[str], script_folder: Path) -> int:
    """Run the chat and return its exit code; what the guide's names do not say goes to it."""
    parser = SentenceParser(
        prog="main.py",
        allow_abbrev=False,
        description="A chat on the terminal. All options of `mindformers-glm chat` work too.",
    )
    parser.add_argument("--mode", required=True, help="cli_demo")
    parser.add_argument("--model_path", metavar="DIR", help="checkpoint folder; none: glm4-mini")
    parser.add_argument("--tp_size", metavar="N", help="processes that the model is split over")
    try:
        arguments, rest = parser.parse_known_args(list(argv))
        _check(arguments)
        _join()
    except CommandLineError as problem:
        write_line(f"error: {problem}")
        return 2
    except GlmError as problem:
        write_line(f"error: {problem}")
        return 1
    except SystemExit:  # --help has been printed
        return 0
    place = [] if arguments.model_path is None else ["--pretrained_model_dir", arguments.model_path]
    if arguments.tp_size is not None:
        place += ["--parallel_config.model_parallel", arguments.tp_size]
    return cli.main(["chat", *place, *rest], script_folder=script_folder)


def _join() -> None:
    """Take part in torchrun's job; as its rank 0, start what MindSpore's ranks meet by."""
    environment = join_torchrun()
    if environment is not None:
        scheduler = [sys.executable, "-m", "mindformers_glm.launcher.rendezvous"]
        start_child("the scheduler", scheduler, environment, Path(os.devnull))


def _check(arguments: argparse.Namespace) -> None:
    if arguments.mode in _OTHER_MODES:
        raise CommandLineError(
            f"--mode {arguments.mode} is not in this version: cli_demo is; prompts of a file are "
            "answered by run_mindformer.py --predict_data FILE."
        )
    if arguments.mode != "cli_demo":
        raise CommandLineError(f"--mode must be cli_demo, got {arguments.mode!r}.")
    tp_size = arguments.tp_size
    if tp_size is not None and (not tp_size.isdecimal() or int(tp_size) < 1):
        raise CommandLineError(f"--tp_size must be a whole number of at least 1, got {tp_size!r}.")
