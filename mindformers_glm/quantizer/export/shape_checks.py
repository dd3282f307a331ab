"""What a format's packing needs of matrices, asked before hours of calibration."""

from collections.abc import Sequence

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import can_split
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.quantizer.export.layout import AWQ, GPTQ, MSMODELSLIM, ExportSettings
from mindformers_glm.quantizer.export.msmodelslim import check_slim_shape
from mindformers_glm.quantizer.export.words import check_words
from mindformers_glm.quantizer.module_names import (
    has_output_layer,
    list_linears,
    list_row_parallel,
)
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import WeightRule


def check_shapes(
    checkpoint: Checkpoint,
    rules: Sequence[WeightRule],
    recipe: Recipe,
    settings: ExportSettings,
) -> None:
    """Refuse what could be calibrated and not be written.

    Where widths are mixed, any matrix may become one of the narrowest.

    Raises:
        UnsupportedError: one sentence, of the first matrix that cannot be held.
    """
    split = frozenset(list_row_parallel(rules)) if settings.num_ranks > 1 else frozenset()
    for name in list_linears(rules):
        is_float = name in recipe.disable_names
        if is_float or (has_output_layer([name]) and not recipe.quantizes_output):
            continue
        shape = checkpoint.entries[f"{name}.weight"].shape
        if settings.layout == MSMODELSLIM:
            num_ranks = settings.num_ranks if name in split else 1
            is_new = settings.mindie_keys is None
            check_slim_shape(name, shape, recipe, num_ranks, is_new)
        elif settings.layout in (GPTQ, AWQ):
            check_words(name, shape, recipe.weight_bits)


def check_heads(config: GlmConfig, num_ranks: int) -> None:
    """Refuse parts that would be no rank's: of heads that are cut through.

    Raises:
        UnsupportedError: the model cannot be split for so many ranks.
    """
    if not can_split(config, num_ranks):
        works = [n for n in (1, 2, 4, 8, 16) if can_split(config, n)]
        raise UnsupportedError(
            f"--tp_size {num_ranks} is more ranks than can share this model's "
            f"{config.num_attention_heads} attention heads and {config.num_key_value_heads} "
            f"key-value heads, or other than they divide into: take --tp_size "
            f"{' or '.join(map(str, works))}."
        )
