"""The arguments of predict, as serving/cli.py parses them."""

import argparse

from mindformers_glm.config.command_line import add_options
from mindformers_glm.config.sentence_parser import SentenceParser


def predict_arguments(*argv: str) -> argparse.Namespace:
    """Parse what follows `predict`."""
    parser = SentenceParser(prog="predict", allow_abbrev=False)
    add_options(parser)
    return parser.read(argv)
