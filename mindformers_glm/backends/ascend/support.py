"""What upstream's network cannot do, refused by name before weights are read."""

from collections.abc import Mapping

from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.kv_cache import AUTO
from mindformers_glm.core.quantization_scheme import (
    STATIC,
    TOKEN,
    QuantizationScheme,
    keep_integers,
)
from mindformers_glm.core.stored_schemes import StoredSchemes

# Of weights and products; the operators take no others.
DTYPES: tuple[str, ...] = ("bfloat16", "float16")
# Of checkpoints that are quantized already.
RUNNING_SCHEMES = "W8A8, W8A8_DYNAMIC and W8A16 by rows"
# PartialRotaryEmbedding puts as many ones behind the rotated columns as there are of those.
_ROTARY_SHARE = 0.5
_OUTPUT_LAYER = "output_layer"
# Of FlashAttentionScore (its documentation, mindspore 2.7.1: "D -- Head size").
_HEAD_UNIT, _LARGEST_HEAD = 16, 512
# As MindSpore calls the processor of an Atlas 300I Duo; a card holds two of them.
ATLAS_300I = "ascend310p"
_ATLAS_300I_RANKS = (1, 2, 4)


def check_device(device: DeviceSettings) -> None:
    """Refuse what the network cannot do whatever the model is.

    Raises:
        UnsupportedError: names it, and what to do.
    """
    if not device.use_flash_attention:
        raise UnsupportedError(
            "use_flash_attention False has no paged KV cache in MindSpore Transformers' network on "
            "Ascend: leave it out, or run with --device_target CPU."
        )


def check_supported(config: GlmConfig, settings: RunnerSettings, processor: str) -> None:
    """Refuse a network or a setting that would run wrongly, or not at all.

    Args:
        processor: what MindSpore calls that of the card, ascend910b, say; empty without a card.
    Raises:
        UnsupportedError: names it, and what to do.
    """
    _refuse(
        _type_problems(settings)
        | _kv_scale_problems(settings)
        | _network_problems(config, settings)
        | _processor_problems(settings, processor)
    )


def check_checkpoint(config: GlmConfig, settings: RunnerSettings, stored: StoredSchemes) -> None:
    """Refuse a network or what its checkpoint brings, whatever types and processor a run has.

    Args:
        stored: what the settings have of it, for each matrix.
    Raises:
        UnsupportedError: names it, and what to do.
    """
    _refuse(
        _kv_scale_problems(settings)
        | _network_problems(config, settings)
        | _matrix_problems(stored)
    )


def _refuse(problems: Mapping[str, bool]) -> None:
    if found := [name for name, is_so in problems.items() if is_so]:
        raise UnsupportedError(
            f"MindSpore Transformers' network on Ascend cannot take {', '.join(found)}: leave it "
            "out or change it, or run with --device_target CPU."
        )


def _type_problems(settings: RunnerSettings) -> dict[str, bool]:
    params_dtype, compute_dtype = settings.params_dtype, settings.compute_dtype
    rotary_dtype = settings.rotary_dtype or compute_dtype
    return {
        f"compute_dtype {compute_dtype} (its operators take {' and '.join(DTYPES)})": (
            compute_dtype not in DTYPES
        ),
        f"rotary_dtype {rotary_dtype} with compute_dtype {compute_dtype}": (
            rotary_dtype != compute_dtype
        ),
        f"kv_cache_dtype {settings.kv_dtype} with compute_dtype {compute_dtype}": (
            settings.kv_cache_dtype not in (AUTO, compute_dtype)
        ),
        f"params_dtype {params_dtype} with compute_dtype {compute_dtype}": (
            params_dtype != compute_dtype
        ),
    }


def _kv_scale_problems(settings: RunnerSettings) -> dict[str, bool]:
    dtype = settings.compute_dtype if settings.compute_dtype in DTYPES else DTYPES[0]
    return {
        f"scales of an int8 KV cache (set kv_cache_dtype to {dtype} to leave them out)": (
            settings.kv_cache_dtype == AUTO and settings.has_kv_scales
        )
    }


def _network_problems(config: GlmConfig, settings: RunnerSettings) -> dict[str, bool]:
    rotary, head = config.partial_rotary_factor, config.head_dim
    return {
        f"{config.in_file_keys('head_dim')} {head} (FlashAttentionScore takes multiples of "
        f"{_HEAD_UNIT} up to {_LARGEST_HEAD})": head % _HEAD_UNIT != 0 or head > _LARGEST_HEAD,
        f"partial_rotary_factor {rotary} (it rotates half of each head)": rotary != _ROTARY_SHARE,
        "rope scaling (YaRN)": config.rope_scaling is not None,
        "a bias of a norm, which anti-outlier has made": bool(settings.shifted_norms),
        "scales for each rank (tp_list)": bool(settings.rounded_columns),
        **_scheme_problems(settings),
        f"quantization {settings.quantization} while loading": settings.quantization is not None,
        **_split_problems(config, settings.model_parallel),
    }


def is_integer_product(scheme: QuantizationScheme) -> bool:
    """Whether the network multiplies integers by the integers of a checkpoint's layer (W8A8)."""
    return (
        (scheme.weight_bits, scheme.activation_bits, scheme.group_size) == (8, 8, None)
        and not (scheme.has_zeros or scheme.is_reordered)
        and scheme.activation_scale in (STATIC, TOKEN)
    )


def runs_integers(scheme: QuantizationScheme) -> bool:
    """Whether the network keeps the integers of a checkpoint's layer: W8A8, W8A16 by rows."""
    is_weight_only = (scheme.weight_bits, scheme.activation_bits) == (8, 16)
    is_by_rows = scheme.group_size is None and not scheme.is_reordered
    return is_integer_product(scheme) or (is_weight_only and is_by_rows)


def _scheme_problems(settings: RunnerSettings) -> dict[str, bool]:
    """Of layers that are quantized in the checkpoint; of several with one scheme the first."""
    stored = reversed(settings.stored_schemes or ())
    labels = {s.label: layer for layer, s in stored if s is not None and not runs_integers(s)}
    return {
        f"a checkpoint quantized in {label} ({layer}; it takes {RUNNING_SCHEMES})": True
        for label, layer in labels.items()
    }


def _matrix_problems(stored: StoredSchemes) -> dict[str, bool]:
    """Of layers whose integers nobody keeps, or that upstream builds as float ones.

    Loading asks the same (quantization.py).
    """
    problems: dict[str, bool] = {}
    first: dict[str, str] = {}
    for layer, schemes in stored.stored.items():
        quantized = [scheme for scheme in schemes if scheme is not None]
        if quantized and keep_integers(schemes) is None:
            names = sorted({"float" if scheme is None else scheme.name for scheme in schemes})
            first.setdefault(" and ".join(names), layer)
        if len({scheme.static_input for scheme in quantized} - {None}) > 1:
            problems["several scales of one input"] = True
        if quantized and layer == _OUTPUT_LAYER:
            problems["a quantized output layer"] = True
    return problems | {
        f"a checkpoint quantized in {names} ({layer}; it takes {RUNNING_SCHEMES})": True
        for names, layer in first.items()
    }


def _split_problems(config: GlmConfig, size: int) -> dict[str, bool]:
    """Heads are refused before (config/partition.py); upstream divides these sizes too."""
    lengths = {name: getattr(config, name) for name in ("vocab_size", "intermediate_size")}
    return {
        f"model_parallel {size} with {config.in_file_keys(name)} {length} (it must divide it)": (
            length % size != 0
        )
        for name, length in lengths.items()
    }


def _processor_problems(settings: RunnerSettings, processor: str) -> dict[str, bool]:
    """Source: mindformers 1.7.0, version_control.py `is_310p` and what asks it."""
    dtype, size = settings.compute_dtype, settings.model_parallel
    is_300i = processor == ATLAS_300I
    ranks = ", ".join(map(str, _ATLAS_300I_RANKS))
    return {
        f"compute_dtype {dtype} on an Atlas 300I Duo (it has float16)": (
            is_300i and dtype == "bfloat16"
        ),
        f"model_parallel {size} on an Atlas 300I Duo (it takes {ranks})": (
            is_300i and size not in _ATLAS_300I_RANKS
        ),
        # aclnnQuantMatmulV4: its table for that card has no scale of a token.
        "a scale of each token (W8A8_DYNAMIC) on an Atlas 300I Duo": is_300i
        and any(s and s.activation_scale == TOKEN for _, s in settings.stored_schemes or ()),
        # aclnnWeightQuantBatchMatmulV2 wants other layouts of weight and scale there.
        "float activations beside int8 weights (W8A16) on an Atlas 300I Duo": is_300i
        and any(s and s.activation_bits == 16 for _, s in settings.stored_schemes or ()),
    }
