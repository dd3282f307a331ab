"""Options that cannot be meant together: one sentence each, before any work."""

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.quantizer.export.layout import AWQ, GPTQ, MSMODELSLIM, NUMPY_SET
from mindformers_glm.quantizer.options import AS_THE_TOOL, BEST, QuantizeOptions
from mindformers_glm.quantizer.recipe import AWQ as BY_AWQ
from mindformers_glm.quantizer.recipe import GPTQ as BY_GPTQ

_GROUP_SIZE = 64


def check_options(options: QuantizeOptions) -> None:
    """Refuse what no recipe can be made of.

    Raises:
        ConfigError: bits, options or a format that do not go together.
    """
    _check_bits(options)
    _check_pairs(options)
    _check_format(options)


def is_sparse(options: QuantizeOptions) -> bool:
    """Whether weights are W8A8S: bodies of 4 bits with outliers of 8."""
    is_wanted = options.co_sparse or options.is_lowbit
    return (options.w_bit, options.a_bit) == (4, 8) and is_wanted


def can_split(options: QuantizeOptions) -> bool:
    """Whether linears whose columns ranks split can have ranges of each rank."""
    is_whole_rows = choose_group_size(options) is None and not is_sparse(options)
    is_slim, is_kv_only = options.format == MSMODELSLIM, options.w_bit == 16
    return is_slim and is_whole_rows and not (options.is_dynamic or is_kv_only)


def has_ranks(options: QuantizeOptions) -> bool:
    """Whether they have."""
    return options.tp_size > 1 and can_split(options)


def choose_group_size(options: QuantizeOptions) -> int | None:
    """Columns that share a scale, of int4: as the tool's options say.

    With the recipe `best`, and in the formats GPTQ and AWQ, there are always groups.
    """
    if options.w_bit != 4 or is_sparse(options):
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
    if bits == (4, 8) and not (is_sparse(options) or options.is_dynamic):
        raise ConfigError(
            "--w_bit 4 --a_bit 8 is sparse, with --co_sparse True or --is_lowbit True, or has a "
            "scale for each token, with --is_dynamic True: give one of them."
        )


def _check_pairs(options: QuantizeOptions) -> None:
    """One sentence for the first pair of options that cannot both be meant."""
    sparse, bits = is_sparse(options), f"--w_bit {options.w_bit} --a_bit {options.a_bit}"
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
        and choose_group_size(options) is not None,
        "--do_smooth True is --anti_method m1 here: leave one of them out": options.do_smooth
        and options.anti_method not in (None, "", "m1"),
        "--calib_texts and --calib_file exclude each other": bool(options.calib_texts)
        and options.calib_file is not None,
        **_mixed_problems(options),
        **_search_problems(options),
        "--calib_texts needs a text": options.calib_texts == [],
    }
    for problem, is_so in problems.items():
        if is_so:
            raise ConfigError(f"{problem}.")


def _mixed_problems(options: QuantizeOptions) -> dict[str, bool]:
    """Of --target_bits."""
    target, sparse = options.target_bits, is_sparse(options)
    if target is None:
        return {}
    return {
        f"--target_bits {target:g} is less than --w_bit {options.w_bit}, the narrowest that "
        "weights become then: give --w_bit 4, with --a_bit 16 or --is_dynamic True": (
            target < options.w_bit
        ),
        "--target_bits and sparse weights (co_sparse, is_lowbit) exclude each other": sparse,
        "--target_bits and --mm_tensor True exclude each other": options.mm_tensor,
        "--target_bits and --disable_level exclude each other: both choose what stays float": (
            options.disable_level > 0
        ),
    }


def _search_problems(options: QuantizeOptions) -> dict[str, bool]:
    """Of --rounding and --rotation."""
    way, sparse, is_kv_only = options.rounding, is_sparse(options), options.w_bit == 16
    searches = way in (BY_GPTQ, BY_AWQ)
    return {
        f"--rounding {way} is not of sparse weights, which are rounded to nearest": searches
        and sparse,
        f"--rounding {way} and --mm_tensor True exclude each other": searches and options.mm_tensor,
        "--rounding awq and --anti_method (or --do_smooth True) exclude each other: AWQ finds "
        "scales of its own": way == BY_AWQ and bool(options.anti_method or options.do_smooth),
        "--rounding has no weights to round: --w_bit 16 leaves them as they are": is_kv_only
        and way is not None,
        f"--rotation {options.rotation} needs weights that are quantized: give --w_bit 8 or 4": (
            is_kv_only and bool(options.rotation)
        ),
    }


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
        f"--rotation changes embeddings and norms, which --format {NUMPY_SET} leaves to the float "
        f"model: take --format {MSMODELSLIM}": bool(options.rotation) and layout == NUMPY_SET,
        f"--anti_method m4 changes biases of linears, and --format {NUMPY_SET} leaves those of "
        "float linears to the float model: leave --disable_names, --disable_level and "
        f"--target_bits out, or take --format {MSMODELSLIM}": (
            layout == NUMPY_SET
            and options.anti_method == "m4"
            and bool(options.disable_names or options.disable_level or options.target_bits)
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
