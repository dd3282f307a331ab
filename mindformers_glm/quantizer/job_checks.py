"""What a checkpoint, a recipe and calibration samples must be before they are quantized."""

from collections.abc import Sequence

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError, ConfigError, UnsupportedError
from mindformers_glm.core.quantized_linear import MIXED, STATIC
from mindformers_glm.quantizer.float_layers import FloatNetwork, LayerNames
from mindformers_glm.quantizer.rank_parts import ROW_PARALLEL, check_cut
from mindformers_glm.quantizer.recipe import NEAREST, Recipe
from mindformers_glm.quantizer.rotation import Rotation
from mindformers_glm.quantizer.rounding import check_columns, check_recipe
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules, resolve_attention_bias
from mindformers_glm.weights.tensor_names import TENSOR_NAMES


def needs_samples(recipe: Recipe) -> bool:
    """Whether anything is calibrated."""
    return bool(
        recipe.activation in (STATIC, MIXED)
        or recipe.rounding != NEAREST
        or recipe.anti_method
        or recipe.has_kv_scales
        or recipe.disable_level
        or recipe.target_bits
        or recipe.has_exchange_scales
    )


def check_job(
    checkpoint: Checkpoint, recipe: Recipe, samples: Sequence[Sequence[int]]
) -> FloatNetwork:
    """Refuse what cannot work before anything is done.

    Returns:
        What the layers are run with.
    Raises:
        CheckpointError, ConfigError, UnsupportedError: see `quantize`.
    """
    if checkpoint.is_share:
        raise CheckpointError(
            f"{checkpoint.folder} is cut for each rank: give the float checkpoint itself."
        )
    if checkpoint.quantized is not None:
        raise CheckpointError(
            f"{checkpoint.folder} is quantized already: give the float checkpoint."
        )
    config = resolve_attention_bias(GlmConfig.from_hf(checkpoint.folder), checkpoint)
    check_rules(build_rules(config), checkpoint)
    check_recipe(recipe)
    if recipe.quantizes_output and config.tie_word_embeddings:
        raise UnsupportedError(
            "The output layer cannot be quantized where it is the embedding too "
            "(tie_word_embeddings): leave disable_last_linear True."
        )
    _check_disabled(checkpoint, config, recipe)
    _check_groups(checkpoint, config, recipe)
    _check_samples(config, recipe, samples)
    rotation = Rotation(config, recipe.rotation) if recipe.rotation else None
    # The tool's own bits come of float32 sums only.
    return FloatNetwork(config, checkpoint, samples, recipe.is_msmodelslim, rotation)


def _check_disabled(checkpoint: Checkpoint, config: GlmConfig, recipe: Recipe) -> None:
    names = LayerNames.of(config)
    output = TENSOR_NAMES[config.model_type].output[0].removesuffix(".weight")
    known = {output} | {
        names.layer_prefix(number) + module
        for number in range(config.num_hidden_layers)
        for modules in names.modules.values()
        for module in modules
    }
    if unknown := sorted(recipe.disable_names - known):
        raise CheckpointError(
            f"{checkpoint.folder} has no linear layer {unknown[0]!r} that could stay float "
            f"(disable_names); it has layers such as {min(known)!r}."
        )


def _check_groups(checkpoint: Checkpoint, config: GlmConfig, recipe: Recipe) -> None:
    names = LayerNames.of(config)
    for parameter, modules in names.modules.items():
        for module in (names.layer_prefix(0) + name for name in modules):
            num_columns = checkpoint.entries[f"{module}.weight"].shape[1]
            if parameter in ROW_PARALLEL:
                check_cut(module, num_columns, recipe.num_ranks)
            if module not in recipe.disable_names:
                check_columns(module, num_columns, recipe)


def _check_samples(config: GlmConfig, recipe: Recipe, samples: Sequence[Sequence[int]]) -> None:
    if needs_samples(recipe) and not samples:
        raise ConfigError(
            "This recipe calibrates activations and there are no calibration samples: give some."
        )
    for place, sample in enumerate(samples):
        if not sample:
            raise ConfigError(f"Calibration sample {place} has no tokens: leave it out.")
        for token in sample:
            if not 0 <= token < config.vocab_size:
                raise ConfigError(
                    f"Calibration sample {place} has token {token}, and the vocabulary ends at "
                    f"{config.vocab_size - 1}: the tokenizer is another model's."
                )
