"""The options of quantizing, by the names and texts of msModelSlim's example for GLM.

Source: the options of msModelSlim's `example/GLM/quant_glm.py` (2026) as its users know them:
truth values are the texts True and False. The last ones are ours. An option that is not given is
None here, for recipes choose differently (chosen_recipe.py).
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.quantizer.export.layout import FORMATS, NUMPY_SET
from mindformers_glm.quantizer.recipe import AWQ, GPTQ, NEAREST, RESIDUAL, VALUES
from mindformers_glm.system.files import parse_json

BEST, FAST, AS_THE_TOOL = "best", "fast", "msmodelslim"
RECIPES = (BEST, FAST, AS_THE_TOOL)
NO_REPORT, LAYERS, FULL = "none", "layers", "full"
REPORTS = (NO_REPORT, LAYERS, FULL)
ANTI_METHODS = ("", "m1", "m2", "m3", "m4", "m5")
_LEVEL = re.compile(r"L(\d{1,4})")


@dataclass(frozen=True)
class QuantizeOptions:
    """What was given; None: not given. Names are those of the options."""

    model_path: Path | None = None
    save_directory: Path | None = None
    part_file_size: int | None = None
    calib_texts: list[str] | None = None
    calib_file: Path | None = None
    anti_file: Path | None = None
    w_bit: int = 8
    a_bit: int = 8
    disable_names: list[str] | None = None
    device_type: str = "cpu"
    fraction: float = 0.01
    act_method: int | None = None
    co_sparse: bool = False
    anti_method: str | None = None
    disable_level: int = 0
    do_smooth: bool = False
    use_sigma: bool = False
    use_reduce_quant: bool = False
    tp_size: int = 1
    sigma_factor: float = 3.0
    is_lowbit: bool = False
    mm_tensor: bool = False
    w_sym: bool = True
    use_kvcache_quant: bool = False
    use_fa_quant: bool = False
    fa_amp: int = 0
    open_outlier: bool = True
    group_size: int | None = None
    is_dynamic: bool = False
    input_ids_name: str | None = None
    attention_mask_name: str | None = None
    tokenizer_args: dict[str, Any] | None = None
    disable_last_linear: bool = True
    model_name: str | None = None
    trust_remote_code: bool = False
    mindie_format: bool = False
    recipe: str = FAST
    target_bits: float | None = None
    rounding: str | None = None
    rotation: str | None = None
    format: str = FORMATS[0]
    calib_samples: int | None = None
    work_directory: Path | None = None
    report: str = LAYERS
    report_texts: Path | None = None
    questions: Path | None = None


@dataclass(frozen=True)
class _Option:
    """How the text of an option is read, and what --help says."""

    read: Callable[[str, str], Any]
    metavar: str
    help: str
    nargs: str | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all of them; their texts are read by `read_options`."""
    for name, option in _OPTIONS.items():
        is_switch = option.metavar == _SWITCH
        parser.add_argument(
            f"--{name}",
            metavar=option.metavar,
            nargs="?" if is_switch else option.nargs,
            const="True" if is_switch else None,
            help=option.help.replace("%", "%%"),
        )


def read_options(arguments: argparse.Namespace) -> QuantizeOptions:
    """Read the texts.

    Raises:
        ConfigError: one is not what it must be, or the model or the place is missing.
    """
    given = {}
    for field in fields(QuantizeOptions):
        text = getattr(arguments, field.name)
        if text is not None:
            given[field.name] = _OPTIONS[field.name].read(field.name, text)
    for name in ("model_path", "save_directory"):
        if name not in given:
            raise ConfigError(f"--{name} is needed: {_OPTIONS[name].help}.")
    options = QuantizeOptions(**given)
    _check_report(options)
    return options


def _check_report(options: QuantizeOptions) -> None:
    is_full = options.report == FULL
    if not is_full and (options.report_texts or options.questions):
        raise ConfigError("--report_texts and --questions are of --report full: add it.")
    if is_full and options.format == NUMPY_SET:
        raise ConfigError(
            f"--report full runs the result as a folder of its own, which --format {NUMPY_SET} "
            "does not write: take --report layers."
        )


def _read_text(name: str, text: str) -> str:
    return text


def _read_path(name: str, text: str) -> Path:
    if not text:
        raise ConfigError(f"--{name} must be a path, got an empty text.")
    return Path(text).expanduser()


def _read_list(name: str, texts: Sequence[str]) -> list[str]:
    return list(texts)


def _read_switch(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"--{name} must be True or False, got {text!r:.40}.")
    return text.lower() == "true"


def _read_object(name: str, text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"--{name} must be a JSON object such as "
            f'\'{{"padding_side": "left"}}\', got {text!r:.60}.'
        )
    return found


def _read_level(name: str, text: str) -> int:
    match = _LEVEL.fullmatch(text)
    if match is None:
        raise ConfigError(f"--{name} must be L0, L1, ..., got {text!r:.40}.")
    return int(match[1])


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if text not in choices:
            known = ", ".join(choice or "an empty text" for choice in choices)
            raise ConfigError(f"--{name} must be one of {known}, got {text!r:.40}.")
        return text

    return read


def _count(*choices: int, minimum: int | None = None) -> Callable[[str, str], int]:
    def read(name: str, text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        if number < (minimum or 0) or (choices and number not in choices):
            known = "one of " + ", ".join(map(str, choices)) if choices else f"at least {minimum}"
            raise ConfigError(f"--{name} must be a whole number, {known}, got {text!r:.40}.")
        return number

    return read


def _number(lowest: float, highest: float) -> Callable[[str, str], float]:
    def read(name: str, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not lowest <= number <= highest:
            raise ConfigError(
                f"--{name} must be a number from {lowest:g} to {highest:g}, got {text!r:.40}."
            )
        return number

    return read


def _switch(help_text: str) -> _Option:
    return _Option(_read_switch, _SWITCH, help_text)


_SWITCH = "True|False"
_OPTIONS = {
    "model_path": _Option(_read_path, "DIR", "the float model, a Hugging Face folder"),
    "save_directory": _Option(_read_path, "DIR", "a new folder for the quantized model"),
    "part_file_size": _Option(_count(minimum=1), "GB", "largest weight file; none: one file"),
    "calib_texts": _Option(_read_list, "TEXT", "texts to calibrate with", "+"),
    "calib_file": _Option(_read_path, "FILE", "jsonl, json, json.gz, csv or zip of such texts"),
    "anti_file": _Option(_read_path, "FILE", "the same, where calib_file is not given"),
    "w_bit": _Option(_count(4, 8, 16), "N", "bits of weights: 8, 4, or 16: as they are"),
    "a_bit": _Option(_count(8, 16), "N", "bits of activations: 8, or 16: as they are"),
    "disable_names": _Option(
        _read_list,
        "NAME",
        "modules that stay float, in the names of any dialect, * for any text; not given, with "
        "a_bit 8: the down projections; no name: none",
        "*",
    ),
    "device_type": _Option(_one_of("cpu", "npu"), "cpu|npu", "quantizing runs on the CPU"),
    "fraction": _Option(_number(0.01, 0.1), "X", "of weights that co_sparse leaves 8 bits"),
    "act_method": _Option(_count(1, 2, 3), "N", "ranges: 1 min-max, 2 histogram, 3 of both"),
    "co_sparse": _switch("w_bit 4, a_bit 8: sparse weights (W8A8S), outliers by their share"),
    "anti_method": _Option(_one_of(*ANTI_METHODS), "m1...m5", "smooth outliers of activations"),
    "disable_level": _Option(_read_level, "Ln", "the n most sensitive modules stay float"),
    "do_smooth": _switch("as anti_method m1"),
    "use_sigma": _switch("sparse weights: outliers by sigma_factor"),
    "use_reduce_quant": _switch("with tp_size: scales of int8 sums between cards"),
    "tp_size": _Option(
        _count(1, 2, 4, 8, 16),
        "N",
        "linears whose columns ranks split have scales of each of so many (any number can run it)",
    ),
    "sigma_factor": _Option(_number(1, 3), "X", "standard deviations, 1 to 3"),
    "is_lowbit": _switch("w_bit 4: sparse (a_bit 8), or groups (a_bit 16, open_outlier False)"),
    "mm_tensor": _switch("one scale for a whole weight, where the tool always has one for a row"),
    "w_sym": _switch("weights without zero points"),
    "use_kvcache_quant": _switch("scales of an int8 KV cache (C8)"),
    "use_fa_quant": _switch("int8 attention: not written"),
    "fa_amp": _Option(_count(minimum=0), "N", "layers whose attention stays float"),
    "open_outlier": _switch("False, with is_lowbit: weights in groups"),
    "group_size": _Option(_count(32, 64, 128), "N", "columns of a group: 32, 64 or 128"),
    "is_dynamic": _switch("activations by a scale of each token"),
    "input_ids_name": _Option(_read_text, "NAME", "not needed"),
    "attention_mask_name": _Option(_read_text, "NAME", "not needed"),
    "tokenizer_args": _Option(_read_object, "JSON", "not needed: texts are tokenized alone"),
    "disable_last_linear": _switch("the output layer stays float"),
    "model_name": _Option(_read_text, "NAME", "not needed: config.json names the dialect"),
    "trust_remote_code": _switch("not needed: no code of the folder is run"),
    "mindie_format": _switch("msModelSlim's old layout, with keys in config.json"),
    "recipe": _Option(_one_of(*RECIPES), "|".join(RECIPES), "how what is not given is chosen"),
    "target_bits": _Option(
        _number(4, 16),
        "X",
        "average bits of weights, mixed by measured sensitivity: of w_bit, 8 and 16",
    ),
    "rounding": _Option(
        _one_of(NEAREST, GPTQ, AWQ), f"{NEAREST}|{GPTQ}|{AWQ}", "how weights are rounded"
    ),
    "rotation": _Option(
        _one_of("", VALUES, RESIDUAL),
        f"{VALUES}|{RESIDUAL}",
        "spread outliers: over the values of each head, or over the residual stream too",
    ),
    "format": _Option(_one_of(*FORMATS), "|".join(FORMATS), "whose folders are written"),
    "calib_samples": _Option(_count(minimum=1), "N", "at most so many texts"),
    "work_directory": _Option(_read_path, "DIR", "where a killed run goes on; beside the result"),
    "report": _Option(
        _one_of(*REPORTS),
        "|".join(REPORTS),
        "errors by layer (the usual); full: also KL, perplexity and questions beside the float "
        "model",
    ),
    "report_texts": _Option(_read_path, "FILE", "report full: held-out texts, as of calib_file"),
    "questions": _Option(_read_path, "FILE", "report full: questions with answers, or C-Eval's"),
}
