"""What options mean: the recipe, how it is written, and what is told about options without effect.

Where the tool's own example does something by oversight, ours does what its options say: mm_tensor
is honoured where the example sets it to False whatever is given, and a calibration file may be the
JSON lines that the example names as its default and cannot read. Without anti_method, none is taken
(as in the example's code; its README speaks of m2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, STATIC
from mindformers_glm.quantizer.export.layout import (
    AWQ,
    GPTQ,
    MSMODELSLIM,
    NUMPY_SET,
    ExportSettings,
)
from mindformers_glm.quantizer.module_names import list_down_projections, resolve_names
from mindformers_glm.quantizer.options import AS_THE_TOOL, BEST, QuantizeOptions
from mindformers_glm.quantizer.recipe import GPTQ as BY_GPTQ
from mindformers_glm.quantizer.recipe import HISTOGRAM, MIN_MAX, NEAREST, Recipe
from mindformers_glm.quantizer.rounding import label_of

_GROUP_SIZE = 64
_BYTES = 2**30  # of a GB, as the tool counts part_file_size


@dataclass(frozen=True)
class ChosenRecipe:
    """What quantizing and writing need to know.

    notices: a sentence for each option that changes nothing here, or otherwise than said.
    """

    recipe: Recipe
    export: ExportSettings
    notices: tuple[str, ...]


def choose_recipe(options: QuantizeOptions, linears: Sequence[str]) -> ChosenRecipe:
    """Turn options into a recipe for a checkpoint with these linear modules.

    Raises:
        ConfigError: options that contradict each other.
        UnsupportedError: what this version cannot do.
    """
    _check_bits(options)
    _check_pairs(options)
    _check_format(options)
    if options.target_bits is not None:
        raise UnsupportedError(
            "--target_bits is not in this version: choose w_bit, and modules that stay float by "
            "disable_names or disable_level."
        )
    recipe = _make_recipe(options, linears)
    export = ExportSettings(
        layout=options.format,
        part_bytes=options.part_file_size and options.part_file_size * _BYTES,
        label="FLOAT" if options.w_bit == 16 else label_of(recipe),
        has_float32=options.recipe == AS_THE_TOOL,
        mindie_keys=_mindie_keys(options, recipe) if options.mindie_format else None,
    )
    return ChosenRecipe(recipe, export, tuple(_list_notices(options)))


def _make_recipe(options: QuantizeOptions, linears: Sequence[str]) -> Recipe:
    is_sparse = _is_sparse(options)
    is_best = options.recipe == BEST and not is_sparse
    is_kv_only = options.w_bit == 16
    activation = FLOAT
    if options.a_bit == 8:
        activation = DYNAMIC if options.is_dynamic else STATIC
    disabled = options.disable_names
    if disabled is None:
        disabled = list_down_projections(linears) if options.a_bit == 8 else []
    anti_method = options.anti_method
    if anti_method is None:
        anti_method = "m2" if is_best and activation == STATIC else ""
    if options.do_smooth and not anti_method:
        anti_method = "m1"
    usual_method = HISTOGRAM if is_best else MIN_MAX
    return Recipe(
        weight_bits=8 if is_sparse or is_kv_only else options.w_bit,
        activation=activation,
        group_size=_choose_group_size(options),
        is_symmetric=options.w_sym,
        is_per_tensor=options.mm_tensor,
        act_method=options.act_method or usual_method,
        anti_method=anti_method,
        disable_names=frozenset(linears) if is_kv_only else resolve_names(disabled, linears),
        disable_level=options.disable_level,
        quantizes_output=not options.disable_last_linear,
        rounding=BY_GPTQ if is_best and not is_kv_only else NEAREST,
        is_sparse=is_sparse,
        is_co_sparse=options.co_sparse,
        fraction=options.fraction,
        use_sigma=options.use_sigma,
        sigma_factor=options.sigma_factor,
        has_kv_scales=options.use_kvcache_quant,
        is_msmodelslim=options.recipe == AS_THE_TOOL,
    )


def _is_sparse(options: QuantizeOptions) -> bool:
    is_wanted = options.co_sparse or options.is_lowbit
    return (options.w_bit, options.a_bit) == (4, 8) and is_wanted


def _choose_group_size(options: QuantizeOptions) -> int | None:
    """Of int4: as the tool's options say; with `best`, in GPTQ and AWQ always."""
    if options.w_bit != 4 or _is_sparse(options):
        return None
    size = options.group_size or _GROUP_SIZE
    is_grouped = options.is_lowbit and not options.open_outlier
    wants_groups = options.group_size is not None and options.recipe != AS_THE_TOOL
    if is_grouped or wants_groups or options.is_dynamic or options.recipe == BEST:
        return size
    return size if options.format in (GPTQ, AWQ) else None


def _check_bits(options: QuantizeOptions) -> None:
    bits = (options.w_bit, options.a_bit)
    if bits == (16, 16) and options.use_kvcache_quant:
        return
    if options.w_bit == 16:
        raise ConfigError(
            f"--w_bit 16 --a_bit {options.a_bit} leaves weights as they are: give --w_bit 8 or 4; "
            "--a_bit 16 --use_kvcache_quant True quantizes the KV cache alone."
        )
    if bits == (4, 8) and not (_is_sparse(options) or options.is_dynamic):
        raise ConfigError(
            "--w_bit 4 --a_bit 8 is sparse, with --co_sparse True or --is_lowbit True, or has a "
            "scale for each token, with --is_dynamic True: give one of them."
        )


def _check_pairs(options: QuantizeOptions) -> None:
    """One sentence for the first pair of options that cannot both be meant."""
    sparse, bits = _is_sparse(options), f"--w_bit {options.w_bit} --a_bit {options.a_bit}"
    problems = {
        f"--is_dynamic True is of activations of 8 bits, not of {bits}": options.is_dynamic
        and options.a_bit != 8,
        "--is_dynamic True and sparse weights (co_sparse, is_lowbit) exclude each other": sparse
        and options.is_dynamic,
        f"--co_sparse True goes with --w_bit 4 --a_bit 8, not with {bits}": options.co_sparse
        and not sparse,
        "--co_sparse True and --is_lowbit True exclude each other": options.co_sparse
        and options.is_lowbit,
        "--use_sigma True is of sparse weights: give --w_bit 4 --a_bit 8 --is_lowbit True": (
            options.use_sigma and not (sparse and options.is_lowbit)
        ),
        f"--w_sym False is of weights beside float activations, not of {bits}": not options.w_sym
        and options.a_bit == 8,
        "--mm_tensor True and groups of columns (w_bit 4) exclude each other": options.mm_tensor
        and _choose_group_size(options) is not None,
        "--do_smooth True is --anti_method m1 here: leave one of them out": options.do_smooth
        and options.anti_method not in (None, "", "m1"),
        "--calib_texts and --calib_file exclude each other": bool(options.calib_texts)
        and options.calib_file is not None,
        "--calib_texts needs a text": options.calib_texts == [],
    }
    for problem, is_so in problems.items():
        if is_so:
            raise ConfigError(f"{problem}.")


def _check_format(options: QuantizeOptions) -> None:
    layout, is_weight_only = options.format, options.a_bit == 16
    problems = {
        f"--mindie_format is a layout of {MSMODELSLIM}, not of --format {layout}": (
            options.mindie_format and layout != MSMODELSLIM
        ),
        f"--format {layout} is of weights alone: give --a_bit 16": layout in (GPTQ, AWQ)
        and not is_weight_only,
        f"--format {NUMPY_SET} has W8A8 and sparse W8A8S: give --a_bit 8 without --is_dynamic": (
            layout == NUMPY_SET and (is_weight_only or options.is_dynamic)
        ),
        f"--format {AWQ} has weights of 4 bits, not of {options.w_bit}": layout == AWQ
        and options.w_bit != 4,
        f"--format {layout} has no scales of a KV cache by channels: leave --use_kvcache_quant "
        f"out, or take --format {MSMODELSLIM}": (
            layout not in (MSMODELSLIM, NUMPY_SET) and options.use_kvcache_quant
        ),
        f"--format {layout} keeps the output layer float: leave --disable_last_linear out": (
            layout in (GPTQ, AWQ) and not options.disable_last_linear
        ),
    }
    for problem, is_so in problems.items():
        if is_so:
            raise ConfigError(f"{problem}.")


def _list_notices(options: QuantizeOptions) -> list[str]:
    notices = {
        "--device_type npu: quantizing runs on the CPU, and its files are the same": (
            options.device_type == "npu"
        ),
        "--use_reduce_quant: int8 sums between cards are not measured without cards; the result "
        "exchanges sums as floats": options.use_reduce_quant,
        "--use_fa_quant, --fa_amp: int8 attention is the cards' own and is not written; int8 "
        "caches are (--use_kvcache_quant)": options.use_fa_quant or options.fa_amp > 0,
        f"--tp_size {options.tp_size}: whole weights are written, which any number of ranks can "
        "run; scales for each rank are not": options.tp_size > 1,
        "--is_lowbit True: the tool's own tuning of accuracy is not public; disable_level and "
        "--recipe best are what there is": options.is_lowbit
        and not _is_sparse(options)
        and options.w_bit != 4,
        "--anti_file is not read: the texts of --calib_file or --calib_texts are for both": (
            options.anti_file not in (None, options.calib_file)
            and bool(options.calib_file or options.calib_texts)
        ),
        "--trust_remote_code: code of the folder is neither needed nor run": (
            options.trust_remote_code
        ),
        "--tokenizer_args: texts are tokenized one by one, without padding, so nothing applies": (
            options.tokenizer_args is not None
        ),
        **_without_effect(options),
    }
    for name in ("input_ids_name", "attention_mask_name", "model_name"):
        notices[f"--{name} is not needed"] = getattr(options, name) is not None
    return [notice for notice, is_so in notices.items() if is_so]


def _without_effect(options: QuantizeOptions) -> dict[str, bool]:
    """Options that only say more of something that was not chosen."""
    usual, sparse = QuantizeOptions(), _is_sparse(options)
    return {
        "--group_size has no effect: weights in groups have 4 bits and are not sparse": (
            options.group_size is not None and (options.w_bit != 4 or sparse)
        ),
        "--open_outlier has no effect without --is_lowbit True and 4 bits": not options.open_outlier
        and (not options.is_lowbit or options.w_bit != 4 or sparse),
        "--fraction has no effect without --co_sparse True": not options.co_sparse
        and options.fraction != usual.fraction,
        "--sigma_factor has no effect without --use_sigma True": not options.use_sigma
        and options.sigma_factor != usual.sigma_factor,
        "--act_method has no effect: no activation has a scale that is measured beforehand": (
            options.act_method is not None and (options.a_bit != 8 or options.is_dynamic)
        ),
        "--calib_samples has no effect on --calib_texts": bool(options.calib_texts)
        and options.calib_samples is not None,
    }


def _mindie_keys(options: QuantizeOptions, recipe: Recipe) -> dict[str, Any]:
    """What --mindie_format adds to config.json, in the tool's order."""
    is_grouped = options.is_lowbit and not options.open_outlier
    return {
        "group_size": (recipe.group_size or 0) if is_grouped else 0,
        "kv_quant_type": "C8" if recipe.has_kv_scales else None,
        "fa_quant_type": None,
        "w_bit": options.w_bit,
        "a_bit": options.a_bit,
        "dev_type": options.device_type,
        "fraction": options.fraction,
        "act_method": recipe.act_method,
        "co_sparse": options.co_sparse,
        "anti_method": recipe.anti_method,
        "disable_level": f"L{options.disable_level}",
        "do_smooth": options.do_smooth,
        "use_sigma": options.use_sigma,
        "sigma_factor": options.sigma_factor,
        "is_lowbit": options.is_lowbit,
        "mm_tensor": options.mm_tensor,
        "w_sym": options.w_sym,
        "open_outlier": options.open_outlier,
        "is_dynamic": options.is_dynamic,
    }
