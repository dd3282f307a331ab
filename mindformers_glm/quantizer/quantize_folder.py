"""One quantizing run: options in, a folder out."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.quantizer.calibration_texts import (
    SHIPPED,
    CalibrationText,
    given_texts,
    read_calibration_file,
    tokenize_texts,
)
from mindformers_glm.quantizer.chosen_recipe import ChosenRecipe, choose_recipe
from mindformers_glm.quantizer.export.shape_checks import check_heads, check_shapes
from mindformers_glm.quantizer.export.write_folder import (
    FLOAT,
    Written,
    check_place,
    real_place,
    write_folder,
)
from mindformers_glm.quantizer.job_checks import needs_samples
from mindformers_glm.quantizer.module_names import list_linears
from mindformers_glm.quantizer.options import FULL, NO_REPORT, QuantizeOptions
from mindformers_glm.quantizer.pipeline import quantize
from mindformers_glm.quantizer.report import ErrorReport
from mindformers_glm.quantizer.work_folder import OtherWorkError, has_work
from mindformers_glm.system.log import note
from mindformers_glm.system.new_file import check_new_file
from mindformers_glm.tokenizer import check_vocabulary, load_tokenizer
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules, resolve_attention_bias


@dataclass(frozen=True)
class QuantizedFolder:
    """What a run has made."""

    source: Path
    folder: Path
    written: Written
    report: ErrorReport


def quantize_folder(options: QuantizeOptions) -> QuantizedFolder:
    """Quantize a model as the options say; what is not in a run's power is told in a note.

    Raises:
        GlmError: the options, the model, the texts or the place are not usable.
    """
    assert options.model_path is not None
    assert options.save_directory is not None
    source = Path(locate_folder(options.model_path))
    output = check_place(source, options.save_directory)
    work = options.work_directory or output.with_name(f".{output.name}.quantizing")
    _check_work(work, {"the model's own folder": source, "the folder to be made": output})
    with _open_float(source) as (checkpoint, config):
        rules = build_rules(config)
        check_rules(rules, checkpoint)
        chosen = choose_recipe(options, list_linears(rules))
        check_heads(config, chosen.recipe.num_ranks)
        check_shapes(checkpoint, rules, chosen.recipe, chosen.export)
        for notice in chosen.notices:
            note(notice)
        samples = _read_samples(options, chosen, source, config)
        _check_writable(output)
        try:
            report = _new_report(source, chosen, samples)
            results = report.watch(quantize(checkpoint, chosen.recipe, samples, work))
            add_files = None if options.report == NO_REPORT else report.write
            written = write_folder(checkpoint, results, output, chosen.export, add_files)
        except OtherWorkError:
            raise
        except BaseException:
            if has_work(work):
                note(f"what is done is kept in {work}: the same command goes on there")
            raise
    if options.w_bit != 16 and written.labels.keys() == {FLOAT}:
        note("no linear module is quantized: disable_names and disable_level leave none")
    shutil.rmtree(work, ignore_errors=True)
    return QuantizedFolder(source, output, written, report)


def _new_report(source: Path, chosen: ChosenRecipe, samples: list[list[int]]) -> ErrorReport:
    recipe = asdict(chosen.recipe)
    recipe["disable_names"] = sorted(chosen.recipe.disable_names)
    return ErrorReport(
        {
            "source": str(source),
            "format": chosen.export.layout,
            "recipe": recipe,
            "calibration": {"texts": len(samples), "tokens": sum(map(len, samples))},
        }
    )


@contextmanager
def _open_float(source: Path) -> Iterator[tuple[Checkpoint, GlmConfig]]:
    """The checkpoint and its configuration.

    Raises:
        ConfigError: it is quantized already, or cut for ranks.
    """
    with Checkpoint.open(source, find_format=find_format) as checkpoint:
        if checkpoint.quantized is not None:
            raise ConfigError(
                f"{source} is quantized already ({checkpoint.quantized.tool}): give the float "
                "model that it was made of."
            )
        if checkpoint.is_share:
            raise ConfigError(f"{source} is cut for ranks: give the model that it was cut from.")
        yield checkpoint, resolve_attention_bias(GlmConfig.from_hf(source), checkpoint)


def _read_samples(
    options: QuantizeOptions, chosen: ChosenRecipe, source: Path, config: GlmConfig
) -> list[list[int]]:
    if not needs_samples(chosen.recipe) and options.report != FULL:
        given = (options.calib_file, options.calib_texts, options.anti_file, options.calib_samples)
        if any(given):
            note("no calibration texts are read: these options measure nothing on texts")
        return []
    tokenizer = load_tokenizer(source)
    check_vocabulary(tokenizer, config.vocab_size, source)
    texts = _read_texts(options)
    return tokenize_texts(texts, tokenizer, config.max_position_embeddings)


def _read_texts(options: QuantizeOptions) -> list[CalibrationText]:
    if options.calib_texts:
        return given_texts(options.calib_texts)
    file = options.calib_file or options.anti_file
    if file is not None:
        return read_calibration_file(file, options.calib_samples)
    texts = read_calibration_file(SHIPPED, options.calib_samples)
    note(
        f"calibrating with {len(texts)} of the short texts that ship with the project: texts like "
        "those the model will see are better (--calib_file)"
    )
    return texts


def _check_work(work: Path, others: dict[str, Path]) -> None:
    """See that the work, which is removed in the end, lies apart from what stays.

    Raises:
        ConfigError: it does not.
    """
    work = real_place(work)
    for what, other in others.items():
        other = real_place(other)
        if work == other or work in other.parents or other in work.parents:
            raise ConfigError(
                f"--work_directory {work} and {what}, {other}, lie one in the other: give another "
                "place for the work."
            )


def _check_writable(output: Path) -> None:
    """See that the place takes files, before hours of work.

    Raises:
        CheckpointError: it does not.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        check_new_file(output)
    except OSError as problem:
        raise CheckpointError(f"Cannot write {output}: {problem.strerror}.") from None
