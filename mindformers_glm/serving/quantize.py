"""`mindformers-glm quantize`: a float model into a quantized one, by msModelSlim's options."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.quantizer.options import (
    FULL,
    NO_REPORT,
    QuantizeOptions,
    add_options,
    read_options,
)
from mindformers_glm.system.interrupts import on_interrupt, raise_once
from mindformers_glm.system.log import note, set_verbose
from mindformers_glm.system.sizes import format_bytes

if TYPE_CHECKING:
    from mindformers_glm.evaluation.quantized_quality import HeldOut
    from mindformers_glm.quantizer.quantize_folder import QuantizedFolder


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
    held_out = _read_held_out(options) if options.report == FULL else None
    made = quantize_folder(options)
    if options.report != NO_REPORT:
        print(made.report.table())
    if held_out is not None:
        _report_whole(made, held_out)
    counts = ", ".join(f"{count} {label}" for label, count in made.written.labels.items() if count)
    print(f"{made.folder}: {format_bytes(made.written.num_bytes)}; linear modules: {counts}")
    return 0


def _read_held_out(options: QuantizeOptions) -> "HeldOut":
    """What the whole model is measured on, read before hours of work.

    Raises:
        GlmError: the model or a file cannot be read.
    """
    from mindformers_glm.evaluation.quantized_quality import read_held_out

    assert options.model_path is not None
    source = Path(locate_folder(options.model_path))
    return read_held_out(source, options.report_texts, options.questions)


def _report_whole(made: "QuantizedFolder", held_out: "HeldOut") -> None:
    """Measure the finished folder and add that to its report."""
    from mindformers_glm.evaluation.quantized_quality import run_float

    try:
        with run_float(made.source, held_out, made.folder.parent) as reference:
            quality = reference.compare(made.folder)
        made.report.write(made.folder, quality.to_dict())
    except OSError as problem:
        raise CheckpointError(
            f"Cannot write the report into {made.folder}: {problem.strerror}."
        ) from None
    except BaseException:
        note(f"{made.folder} is complete; its report has the errors by layer alone")
        raise
    print(quality.table())
