"""main.py with the names of the ChatGLM2 guide: --mode, --model_path, --tp_size."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mindformers_glm.config.sentence_parser import CommandLineError, SentenceParser
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
    parser.add_argument("--tp_size", default="1", metavar="N", help="processes: 1")
    try:
        arguments, rest = parser.parse_known_args(list(argv))
        _check(arguments)
    except CommandLineError as problem:
        write_line(f"error: {problem}")
        return 2
    except SystemExit:  # --help has been printed
        return 0
    place = [] if arguments.model_path is None else ["--pretrained_model_dir", arguments.model_path]
    return cli.main(["chat", *place, *rest], script_folder=script_folder)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.mode in _OTHER_MODES:
        raise CommandLineError(
            f"--mode {arguments.mode} is not in this version: cli_demo is; prompts of a file are "
            "answered by run_mindformer.py --predict_data FILE."
        )
    if arguments.mode != "cli_demo":
        raise CommandLineError(f"--mode must be cli_demo, got {arguments.mode!r}.")
    if not arguments.tp_size.isdecimal() or int(arguments.tp_size) < 1:
        raise CommandLineError(
            f"--tp_size must be a whole number of at least 1, got {arguments.tp_size!r}."
        )
    if int(arguments.tp_size) > 1:
        raise CommandLineError(
            f"A chat runs in one process, and --tp_size {arguments.tp_size} asks for more: leave "
            "it out, or have prompts answered on several by scripts/msrun_launcher.sh "
            f'"run_mindformer.py --predict_data ..." {arguments.tp_size}.'
        )
