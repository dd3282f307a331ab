"""Matrices that a format cannot hold, and ranks that a model cannot have: told before the work."""

from dataclasses import replace
from pathlib import Path

import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantized_linear import DYNAMIC
from mindformers_glm.quantizer.export.layout import AWQ, GPTQ, ExportSettings
from mindformers_glm.quantizer.export.shape_checks import check_heads, check_shapes
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import build_rules
from tests.unit.quantization.float_folder import write_float_folder

_ROWS = Recipe(weight_bits=4)
_GROUPS = Recipe(weight_bits=4, group_size=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "float"
    return write_float_folder(folder, "glm4")


def _check(source: Path, recipe: Recipe, settings: ExportSettings, shape: list[int]) -> None:
    """As if one output projection had another shape."""
    with Checkpoint.open(source) as checkpoint:
        rules = build_rules(GlmConfig.from_hf(source))
        name = "model.layers.1.self_attn.o_proj.weight"
        checkpoint.entries[name] = replace(checkpoint.entries[name], shape=tuple(shape))
        check_shapes(checkpoint, rules, recipe, settings)


_REFUSED = {
    "odd rows": (_ROWS, ExportSettings(), [64, 65], "is 64 by 65, which int4 in pairs"),
    "odd for a rank": (
        replace(_ROWS, num_ranks=16),
        ExportSettings(num_ranks=16),
        [64, 48],
        "for each of 16 ranks, is 64 by 3, which int4 in pairs",
    ),
    "groups": (_GROUPS, ExportSettings(), [63, 64], "is 63 by 64, which int4 in pairs"),
    "16 ranks": (
        replace(_GROUPS, activation=DYNAMIC),
        ExportSettings(),
        [64, 40],
        "has 40 columns, which W4A8_DYNAMIC must split",
    ),
    "gptq": (_GROUPS, ExportSettings(layout=GPTQ), [60, 64], "words of 8 values"),
    "awq": (_GROUPS, ExportSettings(layout=AWQ), [60, 64], "words of 8 values"),
}
_TAKEN = {
    "the old layout": (_ROWS, ExportSettings(mindie_keys={}), [64, 65]),
    "8 bits": (Recipe(), ExportSettings(), [63, 65]),
    "sparse": (replace(_ROWS, is_sparse=True), ExportSettings(), [63, 65]),
    "float": (
        replace(_ROWS, disable_names=frozenset({"model.layers.1.self_attn.o_proj"})),
        ExportSettings(),
        [64, 65],
    ),
    "even for a rank": (
        replace(_ROWS, num_ranks=16),
        ExportSettings(num_ranks=16),
        [64, 32],
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_a_matrix_that_cannot_be_held_is_refused(case: str, source: Path) -> None:
    recipe, settings, shape, sentence = _REFUSED[case]
    with pytest.raises(UnsupportedError, match=rf"layers\.1\.self_attn\.o_proj.*{sentence}"):
        _check(source, recipe, settings, shape)


@pytest.mark.parametrize("case", _TAKEN)
def test_what_can_be_held_is_not(case: str, source: Path) -> None:
    _check(source, *_TAKEN[case])


def test_ranks_that_cut_through_heads_are_refused(source: Path) -> None:
    config = replace(GlmConfig.from_hf(source), num_attention_heads=8, num_key_value_heads=2)
    check_heads(config, 8)
    with pytest.raises(UnsupportedError, match=r"--tp_size 16.*8 attention.*--tp_size 1 or 2 or 4"):
        check_heads(config, 16)
