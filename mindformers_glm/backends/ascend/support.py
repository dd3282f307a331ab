"""What upstream's network cannot do, refused by name before weights are read."""

from collections.abc import Sequence

from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import cut_columns
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.sharding import FFN

# PartialRotaryEmbedding puts as many ones behind the rotated columns as there are of those.
_ROTARY_SHARE = 0.5


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


def check_supported(config: GlmConfig, settings: RunnerSettings, dtypes: Sequence[str]) -> None:
    """Refuse a network or a setting that would run wrongly, or not at all.

    Args:
        dtypes: of weights and products, what the card takes.
    Raises:
        UnsupportedError: names it, and what to do.
    """
    size = settings.model_parallel
    rotary = config.partial_rotary_factor
    params_dtype, compute_dtype = settings.params_dtype, settings.compute_dtype
    rotary_dtype = settings.rotary_dtype or compute_dtype
    problems = {
        f"compute_dtype {compute_dtype} (its operators take {' and '.join(dtypes)})": (
            compute_dtype not in dtypes
        ),
        f"rotary_dtype {rotary_dtype} with compute_dtype {compute_dtype}": (
            rotary_dtype != compute_dtype
        ),
        f"partial_rotary_factor {rotary} (it rotates half of each head)": rotary != _ROTARY_SHARE,
        "rope scaling (YaRN)": config.rope_scaling is not None,
        "a quantized checkpoint": settings.stored_schemes is not None,
        f"quantization {settings.quantization} while loading": settings.quantization is not None,
        f"params_dtype {params_dtype} with compute_dtype {compute_dtype}": (
            params_dtype != compute_dtype
        ),
        f"model_parallel {size} with a vocabulary of {config.vocab_size}": config.vocab_size % size
        != 0,
        f"model_parallel {size} with intermediate_size {config.intermediate_size}": len(
            set(map(len, cut_columns(config, FFN, size)))
        )
        > 1,
    }
    if found := [name for name, is_so in problems.items() if is_so]:
        raise UnsupportedError(
            f"MindSpore Transformers' network on Ascend cannot take {', '.join(found)}: leave it "
            "out or change it, or run with --device_target CPU."
        )
