"""web_demo.py with the names of the ChatGLM2 guide: --model_path, --tp_size."""

from collections.abc import Sequence
from pathlib import Path

from mindformers_glm.config.sentence_parser import CommandLineError, SentenceParser
from mindformers_glm.serving import cli
from mindformers_glm.system.log import write_line


def main(argv: Sequence[str], script_folder: Path) -> int:
    """Show the page and return its exit code; all other words go to `mindformers-glm webui`."""
    parser = SentenceParser(
        prog="web_demo.py",
        allow_abbrev=False,
        description="A chat in the browser. All options of `mindformers-glm webui` work too.",
    )
    parser.add_argument("--model_path", metavar="DIR", help="checkpoint folder; none: glm4-mini")
    parser.add_argument(
        "--tp_size", default="1", metavar="N", help="processes that share the model"
    )
    try:
        arguments, rest = parser.parse_known_args(list(argv))
    except CommandLineError as problem:
        write_line(f"error: {problem}")
        return 2
    except SystemExit:  # --help has been printed
        return 0
    place = [] if arguments.model_path is None else ["--pretrained_model_dir", arguments.model_path]
    return cli.main(
        ["webui", *place, "--tp_size", arguments.tp_size, *rest],
        prog="web_demo.py",
        script_folder=script_folder,
    )
