"""What is refused for Ascend, from the config and the processor's name alone."""

from dataclasses import replace

import pytest

from mindformers_glm.backends.ascend.support import ATLAS_300I, check_supported
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import UnsupportedError
from tests.unit.core.glm_9b import GLM_9B

GLM_32B = replace(
    GLM_9B, hidden_size=6144, intermediate_size=23040, num_attention_heads=48, num_hidden_layers=61
)


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


@pytest.mark.parametrize("dtype", ["int8", "float32", "bfloat16"])
def test_a_cache_of_another_type_than_the_products_is_refused_by_name(dtype: str) -> None:
    settings = RunnerSettings.with_defaults("float16", 8192, kv_cache_dtype=dtype)
    words = f"cannot take kv_cache_dtype {dtype} with compute_dtype float16: leave it out"
    with pytest.raises(UnsupportedError, match=words):
        check_supported(GLM_9B, settings, "")
    check_supported(GLM_9B, replace(settings, kv_cache_dtype="float16"), "")


def test_scales_of_an_int8_cache_are_refused_unless_they_are_left_out() -> None:
    settings = RunnerSettings.with_defaults("float16", 8192)
    with pytest.raises(UnsupportedError, match="kv_cache_dtype int8"):
        check_supported(GLM_9B, replace(settings, has_kv_scales=True), "")
    check_supported(GLM_9B, replace(settings, has_kv_scales=True, kv_cache_dtype="float16"), "")
