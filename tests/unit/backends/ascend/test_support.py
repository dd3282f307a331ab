"""What is refused for Ascend, from the config and the processor's name alone."""

from dataclasses import replace

import pytest

from mindformers_glm.backends.ascend.footprint import count_memory
from mindformers_glm.backends.ascend.support import (
    ATLAS_300I,
    check_checkpoint,
    check_supported,
)
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantization_scheme import (
    MIXED,
    SCHEMES,
    STATIC,
    TOKEN,
    QuantizationScheme,
)
from mindformers_glm.core.stored_schemes import StoredSchemes
from tests.unit.core.glm_9b import GLM_9B

GLM_32B = replace(
    GLM_9B, hidden_size=6144, intermediate_size=23040, num_attention_heads=48, num_hidden_layers=61
)


FLOAT16 = RunnerSettings.for_config(GLM_9B, "float16", params_dtype="float16")


def check(config: GlmConfig, size: int, dtype: str, processor: str) -> None:
    settings = RunnerSettings.for_config(
        config, "bfloat16", params_dtype=dtype, compute_dtype=dtype, model_parallel=size
    )
    check_supported(config, settings, processor)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("config", [GLM_9B, GLM_32B], ids=["9B", "32B"])
def test_the_released_models_run_on_up_to_eight_cards(config: GlmConfig, size: int) -> None:
    for dtype in ("bfloat16", "float16"):
        check(config, size, dtype, "ascend910b")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_atlas_300i_duo_runs_float16_on_up_to_four_ranks(size: int) -> None:
    check(GLM_9B, size, "float16", ATLAS_300I)


@pytest.mark.parametrize(
    ("changes", "size", "dtype", "processor", "words"),
    [
        ({}, 8, "float16", ATLAS_300I, r"model_parallel 8 on an Atlas 300I Duo \(it takes 1, 2, 4"),
        ({}, 2, "bfloat16", ATLAS_300I, "compute_dtype bfloat16 on an Atlas 300I Duo"),
        ({}, 1, "float32", "ascend910b", r"float32 \(its operators take bfloat16 and float16"),
        ({"vocab_size": 151343}, 2, "float16", "", r"model_parallel 2 with vocab_size 151343"),
        (
            {"head_dim": 72},
            1,
            "float16",
            "",
            r"head_dim 72 \(FlashAttentionScore takes multiples of",
        ),
        ({"head_dim": 528}, 1, "float16", "", "head_dim 528"),
        ({"intermediate_size": 13698}, 4, "float16", "", "with intermediate_size 13698"),
    ],
)
def test_what_cannot_run_is_refused_by_name(
    changes: dict[str, int], size: int, dtype: str, processor: str, words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        check(replace(GLM_9B, **changes), size, dtype, processor)


def check_stored(scheme: QuantizationScheme, processor: str = "ascend910b") -> None:
    schemes = (
        ("decoder.layers.0.mlp.linear_fc1", None),
        ("decoder.layers.1.mlp.linear_fc1", scheme),
    )
    check_supported(GLM_9B, replace(FLOAT16, stored_schemes=schemes), processor)


_W8A8 = QuantizationScheme("W8A8", 8, 8, None, activation_scale=STATIC)
_W8A16 = SCHEMES["w8a16"]
_W8A8_DYNAMIC = replace(_W8A8, name="W8A8_DYNAMIC", activation_scale=TOKEN)


def test_int8_weights_with_static_scales_or_those_of_tokens_run() -> None:
    check_stored(_W8A8)
    check_stored(_W8A8, ATLAS_300I)
    check_stored(_W8A8_DYNAMIC)
    check_stored(_W8A16)
    check_stored(replace(_W8A16, has_zeros=True))


@pytest.mark.parametrize(
    ("label", "scheme"),
    [
        ("W8A8_MIX", replace(_W8A8, activation_scale=MIXED)),
        ("W8A8, asymmetric", replace(_W8A8, has_zeros=True)),
        ("W8A8, columns reordered", replace(_W8A8, is_reordered=True)),
        ("W4A8_DYNAMIC", replace(_W8A8, weight_bits=4, activation_scale=TOKEN)),
        ("W8A8, groups of 128", replace(_W8A8, group_size=128)),
        ("W4A16, groups of 128", SCHEMES["w4a16"]),
        ("W8A8_DYNAMIC", SCHEMES["w8a8_dynamic"]),
        ("W4A8_DYNAMIC, groups of 128", SCHEMES["w4a8_dynamic"]),
        ("W8A16, groups of 128", replace(SCHEMES["w8a16"], group_size=128)),
    ],
)
def test_other_schemes_are_refused_by_name_with_their_layer(
    label: str, scheme: QuantizationScheme
) -> None:
    words = rf"a checkpoint quantized in {label} \(decoder\.layers\.1\.mlp\.linear_fc1; it"
    with pytest.raises(UnsupportedError, match=words):
        check_stored(scheme)


def test_a_norm_with_a_bias_is_refused() -> None:
    shifted = ("decoder.layers.0.self_attention.linear_qkv",)
    settings = replace(FLOAT16, shifted_norms=shifted)
    with pytest.raises(UnsupportedError, match="a bias of a norm, which anti-outlier has made"):
        check_supported(GLM_9B, settings, "ascend910b")


def test_scales_for_each_rank_are_refused() -> None:
    columns = ("decoder.layers.0.mlp.linear_fc2",)
    settings = replace(FLOAT16, rounded_columns=columns)
    with pytest.raises(UnsupportedError, match=r"scales for each rank \(tp_list\)"):
        check_supported(GLM_9B, settings, "ascend910b")


def test_an_atlas_300i_duo_has_no_scale_of_each_token() -> None:
    with pytest.raises(UnsupportedError, match=r"W8A8_DYNAMIC\) on an Atlas 300I Duo"):
        check_stored(_W8A8_DYNAMIC, ATLAS_300I)
    with pytest.raises(UnsupportedError, match=r"W8A16\) on an Atlas 300I Duo"):
        check_stored(_W8A16, ATLAS_300I)


def test_integers_take_a_byte_each_and_their_scales() -> None:
    name = "decoder.layers.0.mlp.linear_fc1"
    rows, columns = 2 * GLM_9B.intermediate_size, GLM_9B.hidden_size

    def saved(scheme: QuantizationScheme, dtype: str) -> int:
        settings = RunnerSettings.for_config(GLM_9B, dtype, params_dtype=dtype)
        float_bytes, own = (
            count_memory(GLM_9B, replace(settings, stored_schemes=((name, s),))).weights_bytes
            for s in (None, scheme)
        )
        return float_bytes - own

    assert saved(_W8A8_DYNAMIC, "bfloat16") == rows * (columns - 4)
    assert saved(_W8A8, "bfloat16") == rows * (columns - 4 - 4)
    assert saved(_W8A8, "float16") == rows * (columns - 8 - 4)
    assert saved(_W8A16, "float16") == rows * (columns - 2)
    assert saved(replace(_W8A16, has_zeros=True), "bfloat16") == rows * (columns - 2 - 2)


@pytest.mark.parametrize("dtype", ["int8", "float32", "bfloat16"])
def test_a_cache_of_another_type_than_the_products_is_refused_by_name(dtype: str) -> None:
    settings = RunnerSettings.with_defaults("float16", 8192, kv_cache_dtype=dtype)
    words = f"cannot take kv_cache_dtype {dtype} with compute_dtype float16: leave it out"
    with pytest.raises(UnsupportedError, match=words):
        check_supported(GLM_9B, settings, "")
    check_supported(GLM_9B, replace(settings, kv_cache_dtype="float16"), "")


def test_scales_of_an_int8_cache_are_refused_unless_they_are_left_out() -> None:
    settings = RunnerSettings.with_defaults("float16", 8192)
    with pytest.raises(UnsupportedError, match=r"int8 KV cache \(set kv_cache_dtype to float16"):
        check_supported(GLM_9B, replace(settings, has_kv_scales=True), "")
    check_supported(GLM_9B, replace(settings, has_kv_scales=True, kv_cache_dtype="float16"), "")


def test_a_checkpoint_is_judged_whatever_the_types_of_a_run() -> None:
    exact = replace(FLOAT16, params_dtype="float32", compute_dtype="float32")
    check_checkpoint(GLM_9B, exact, StoredSchemes())
    with pytest.raises(UnsupportedError, match=r"int8 KV cache \(set kv_cache_dtype to bfloat16"):
        check_checkpoint(GLM_9B, replace(exact, has_kv_scales=True), StoredSchemes())
    columns = ("decoder.layers.0.mlp.linear_fc2",)
    with pytest.raises(UnsupportedError, match=r"scales for each rank \(tp_list\)"):
        check_checkpoint(GLM_9B, replace(exact, rounded_columns=columns), StoredSchemes())
