"""`mindformers-glm quantize`: a float model into a quantized one, by msModelSlim's options."""

import argparse

from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.quantizer.options import add_options, read_options
from mindformers_glm.system.interrupts import on_interrupt, raise_once
from mindformers_glm.system.log import set_verbose
from mindformers_glm.system.sizes import format_bytes


def add_arguments(parser: SentenceParser) -> None:
    """Add the options of quantizing."""
    add_options(parser)
    parser.add_argument("--verbose", action="store_true", help="show details")


def run(arguments: argparse.Namespace) -> int:
    """Do what `quantize` asks for and return the exit code.

    Raises:
        GlmError: the options, the model, the texts or the place are not usable.
    """
    set_verbose(arguments.verbose)
    options = read_options(arguments)
    from mindformers_glm.quantizer.quantize_folder import quantize_folder

    on_interrupt(raise_once)  # unwinds, so that nothing half-written stays
    made = quantize_folder(options)
    counts = ", ".join(f"{count} {label}" for label, count in made.written.labels.items() if count)
    print(f"{made.folder}: {format_bytes(made.written.num_bytes)}; linear modules: {counts}")
    return 0
