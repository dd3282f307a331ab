"""What options mean: the recipe, how it is written, and what is told about options without effect.

Where the tool's own example does something by oversight, ours does what its options say: mm_tensor
is honoured where the example sets it to False whatever is given, and a calibration file may be the
JSON lines that the example names as its default and cannot read. Without anti_method, none is taken
(as in the example's code; its README speaks of m2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, STATIC
from mindformers_glm.quantizer.export.layout import AWQ, NUMPY_SET, ExportSettings
from mindformers_glm.quantizer.module_names import (
    has_output_layer,
    list_down_projections,
    resolve_names,
)
from mindformers_glm.quantizer.option_checks import (
    can_split,
    check_options,
    choose_group_size,
    has_ranks,
    is_sparse,
)
from mindformers_glm.quantizer.options import AS_THE_TOOL, BEST, QuantizeOptions
from mindformers_glm.quantizer.recipe import AWQ as BY_AWQ
from mindformers_glm.quantizer.recipe import GPTQ as BY_GPTQ
from mindformers_glm.quantizer.recipe import HISTOGRAM, MIN_MAX, NEAREST, SEARCHED, Recipe
from mindformers_glm.quantizer.rounding import label_of

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
    """
    check_options(options)
    recipe = _make_recipe(options, linears)
    export = ExportSettings(
        layout=options.format,
        part_bytes=options.part_file_size and options.part_file_size * _BYTES,
        label="FLOAT" if options.w_bit == 16 else label_of(recipe),
        has_float32=options.recipe == AS_THE_TOOL,
        mindie_keys=_mindie_keys(options, recipe) if options.mindie_format else None,
        num_ranks=recipe.num_ranks,
    )
    return ChosenRecipe(recipe, export, tuple(_list_notices(options)))


def _make_recipe(options: QuantizeOptions, linears: Sequence[str]) -> Recipe:
    has_outliers = is_sparse(options)
    is_best = options.recipe == BEST and not has_outliers
    is_kv_only = options.w_bit == 16
    activation = FLOAT
    if options.a_bit == 8:
        activation = DYNAMIC if options.is_dynamic else STATIC
    disabled = options.disable_names
    if disabled is None:
        # Where widths are mixed, what stays float is found by measuring.
        keeps_down = options.a_bit == 8 and options.target_bits is None
        disabled = list_down_projections(linears) if keeps_down else []
    # What is asked for comes before what best would choose.
    anti_method = options.anti_method or ("m1" if options.do_smooth else options.anti_method)
    if anti_method is None:
        smooths = is_best and not is_kv_only and options.rounding != BY_AWQ
        keeps_down = set(list_down_projections(linears)) <= resolve_names(disabled, linears)
        anti_method = _best_anti_method(options, activation, keeps_down) if smooths else ""
    kept = frozenset(linears) if is_kv_only else resolve_names(disabled, linears)
    has_search = is_best and not (is_kv_only or options.mm_tensor)
    usual_method = SEARCHED if is_best else MIN_MAX
    return Recipe(
        weight_bits=8 if has_outliers or is_kv_only else options.w_bit,
        activation=activation,
        group_size=choose_group_size(options),
        is_symmetric=options.w_sym or is_kv_only,
        is_per_tensor=options.mm_tensor and not is_kv_only,
        act_method=options.act_method or usual_method,
        anti_method="" if is_kv_only else anti_method,
        disable_names=kept,
        disable_level=0 if is_kv_only else options.disable_level,
        quantizes_output=not (options.disable_last_linear or has_output_layer(kept)),
        rounding=options.rounding or (BY_GPTQ if has_search else NEAREST),
        is_sparse=has_outliers,
        is_co_sparse=options.co_sparse,
        fraction=options.fraction,
        use_sigma=options.use_sigma,
        sigma_factor=options.sigma_factor,
        has_kv_scales=options.use_kvcache_quant,
        rotation=options.rotation or "",
        target_bits=options.target_bits,
        max_bits=4 if options.format == AWQ else 8,
        num_ranks=options.tp_size if can_split(options) else 1,
        has_exchange_scales=options.use_reduce_quant and has_ranks(options),
        is_msmodelslim=options.recipe == AS_THE_TOOL,
    )


def _best_anti_method(options: QuantizeOptions, activation: str, keeps_down: bool) -> str:
    """The least KL by measurement: docs/quantization.md, bench_quantizing.py's second table.

    m3 searches what int4 groups gain by, and takes little where there is little to gain; one scale
    of all activations gains by m4, which flattens channels nearly whatever it costs the weights.
    Where down projections are rounded too, that was too much on glm4-mini: m1 leaves them alone.

    Args:
        keeps_down: down projections stay float.
    """
    if options.w_bit == 4:
        return "m3"
    # .npy files leave biases of float modules, which m4 may change, to the float model.
    if activation == STATIC and keeps_down and options.format != NUMPY_SET:
        return "m4"
    return "" if activation == FLOAT else "m1"


def _list_notices(options: QuantizeOptions) -> list[str]:
    notices = {
        "--device_type npu: quantizing runs on the CPU, and its files are the same": (
            options.device_type == "npu"
        ),
        "--use_reduce_quant has no effect without --tp_size of 2 or more in msModelSlim's format, "
        "with static activations or weights alone by rows: its scales are of each rank": (
            options.use_reduce_quant and not has_ranks(options)
        ),
        "--use_reduce_quant: scales of int8 sums are written for cards; ranks of this project "
        "exchange sums as floats": options.use_reduce_quant and has_ranks(options),
        "--use_fa_quant, --fa_amp: int8 attention is the cards' own and is not written; int8 "
        "caches are (--use_kvcache_quant)": options.use_fa_quant or options.fa_amp > 0,
        f"--tp_size {options.tp_size} has no effect: scales of each rank are of msModelSlim's "
        "format, with static activations or weights alone by rows; whole weights are written, "
        "which any number of ranks can run": options.tp_size > 1 and not can_split(options),
        "--is_lowbit True: the tool's own tuning of accuracy is not public; disable_level and "
        "--recipe best are what there is": options.is_lowbit
        and not is_sparse(options)
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
    usual, sparse = QuantizeOptions(), is_sparse(options)
    idle = _names_of_weights(options) if options.w_bit == 16 else ""
    return {
        f"{idle} has no effect: --w_bit 16 leaves weights as they are": bool(idle),
        "--part_file_size has no effect: --format numpy has one file of each kind": (
            options.part_file_size is not None and options.format == NUMPY_SET
        ),
        "--group_size has no effect: weights in groups have 4 bits and are not sparse": (
            options.group_size is not None and (options.w_bit != 4 or sparse)
        ),
        "--is_lowbit True with --open_outlier True, its default, gives weights of 4 bits the "
        "scales of rows, as in the tool; for groups add --open_outlier False": (
            options.is_lowbit and _has_rows_of_int4(options)
        ),
        "--group_size has no effect: the tool has groups with --is_lowbit True --open_outlier "
        "False alone": (
            options.group_size is not None and not options.is_lowbit and _has_rows_of_int4(options)
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


def _names_of_weights(options: QuantizeOptions) -> str:
    """What was given that says how weights become integers."""
    given = {
        "--disable_names": options.disable_names is not None,
        "--disable_level": options.disable_level > 0,
        "--disable_last_linear False": not options.disable_last_linear,
        "--anti_method": bool(options.anti_method),
        "--do_smooth": options.do_smooth,
        "--mm_tensor": options.mm_tensor,
        "--w_sym False": not options.w_sym,
    }
    return ", ".join(name for name, is_given in given.items() if is_given)


def _has_rows_of_int4(options: QuantizeOptions) -> bool:
    """Whether int4 weights have a scale for each row."""
    is_int4 = options.w_bit == 4 and not is_sparse(options)
    return is_int4 and choose_group_size(options) is None


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
        # Of the tool's three, the one that cuts off by error, too.
        "act_method": HISTOGRAM if recipe.act_method == SEARCHED else recipe.act_method,
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
        **({"reduce_quant_type": "per_channel"} if recipe.has_exchange_scales else {}),
    }
