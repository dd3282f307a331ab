"""config/runner_settings.py: which precisions exist and what is chosen by default."""

import json
from dataclasses import replace

import pytest

from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantization_scheme import SCHEMES, QuantizationScheme
from mindformers_glm.core.quantized_linear import StoredScheme
from mindformers_glm.core.stored_schemes import StoredSchemes
from tests.unit.core.glm_9b import GLM_9B


def test_types_follow_the_checkpoint_where_nothing_is_given() -> None:
    settings = RunnerSettings.with_defaults("bfloat16", 32768)
    assert (settings.params_dtype, settings.compute_dtype) == ("bfloat16", "bfloat16")
    assert settings.max_model_len == 8192


def test_rotary_tables_are_left_to_the_device_where_nothing_else_is_given() -> None:
    assert RunnerSettings.with_defaults("bfloat16", 64, rotary_dtype=None).rotary_dtype is None
    given = RunnerSettings.with_defaults("bfloat16", 64, rotary_dtype="float16")
    assert given.rotary_dtype == "float16"


def test_what_is_given_wins_and_none_is_not_given() -> None:
    settings = RunnerSettings.with_defaults(
        "bfloat16", 4096, compute_dtype="float32", block_size=3, max_num_seqs=None
    )
    assert (settings.params_dtype, settings.compute_dtype) == ("bfloat16", "float32")
    assert settings.max_blocks_per_seq == 1366


def test_a_precision_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"float32 with compute_dtype bfloat16.*float32/float32"):
        RunnerSettings.with_defaults("float32", 4096, compute_dtype="bfloat16")


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="block_size must be at least 1, got 0"):
        RunnerSettings.with_defaults("float32", 4096, block_size=0)


@pytest.mark.parametrize("size", ["3", 2.5, True])
def test_sizes_must_be_whole_numbers(size: object) -> None:
    with pytest.raises(ConfigError, match="max_num_seqs must be a whole number, got"):
        RunnerSettings.with_defaults("float32", 4096, max_num_seqs=size)


def test_a_length_beyond_the_checkpoints_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len=65 .*max_position_embeddings=64"):
        RunnerSettings.with_defaults("float32", 64, max_model_len=65)


def test_an_unknown_setting_names_those_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"'num_layer' is not a setting: use params_dtype, .*block"
    ):
        RunnerSettings.with_defaults("float32", 64, num_layer=2)


def test_types_have_the_short_names_of_the_command_line() -> None:
    settings = RunnerSettings.with_defaults("float32", 64, params_dtype="bf16", rotary_dtype="fp16")
    assert (settings.params_dtype, settings.compute_dtype) == ("bfloat16", "bfloat16")
    assert settings.rotary_dtype == "float16"


@pytest.mark.parametrize("name", ["int8", 16, ["bf16"]])
def test_a_type_that_does_not_exist_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="rotary_dtype must be float32, bfloat16 or float16, got"):
        RunnerSettings.with_defaults("float32", 64, rotary_dtype=name)


def test_weights_stay_float_where_no_quantization_is_given() -> None:
    assert RunnerSettings.with_defaults("bfloat16", 64).scheme_of("output_layer") is None


def test_every_linear_layer_takes_the_scheme_that_is_given() -> None:
    settings = RunnerSettings.with_defaults(
        "bfloat16", 64, quantization="w4a16", quantization_group_size=64
    )
    for name in ("decoder.layers.0.mlp.linear_fc1", "output_layer"):
        scheme = settings.scheme_of(name)
        assert scheme is not None
        assert (scheme.weight_bits, scheme.group_size) == (4, 64)


def test_float_layers_of_the_checkpoint_stay_float() -> None:
    config = replace(GLM_9B, float_layers_id=(1, 12))
    settings = RunnerSettings.for_config(config, "float32", quantization="w8a16")
    assert settings.params_dtype == "bfloat16"  # config.json's
    for layer, is_float in ((0, False), (1, True), (2, False), (12, True), (11, False)):
        for name in ("self_attention.linear_qkv", "mlp.linear_fc2"):
            scheme = settings.scheme_of(f"decoder.layers.{layer}.{name}")
            assert (scheme is None) == is_float, layer
    assert settings.scheme_of("output_layer") is not None


def test_float_layers_are_no_setting_of_a_run() -> None:
    with pytest.raises(ConfigError, match="'float_layers' is not a setting"):
        RunnerSettings.for_config(GLM_9B, "float32", float_layers=(0,))


def test_float_layers_are_a_format_of_their_own_in_the_packed_cache() -> None:
    formats = [
        RunnerSettings.for_config(
            replace(GLM_9B, float_layers_id=layers), "float32", quantization="w8a16"
        ).weight_format
        for layers in ((), (0,))
    ]
    assert formats[0] != formats[1]
    # A cache file's key is compared with what its JSON header gives back.
    assert all(json.loads(json.dumps(found)) == found for found in formats)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_checkpoint_of_any_type_can_be_quantized(dtype: str) -> None:
    settings = RunnerSettings.with_defaults(dtype, 64, quantization="w8a16")
    assert (settings.params_dtype, settings.compute_dtype) == (dtype, dtype)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quantization": "int8"}, "quantization must be one of w8a16, .*, got 'int8'"),
        ({"quantization_group_size": 64}, "quantization is not set"),
        (
            {"quantization": "w8a16", "quantization_group_size": 64},
            "with quantization w4a16, w4a8_dynamic only",
        ),
        ({"quantization": "w4a16", "quantization_group_size": 48}, "must be one of 32, 64, 128"),
    ],
)
def test_a_quantization_that_does_not_exist_is_refused(
    given: dict[str, str | int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RunnerSettings.with_defaults("float32", 64, **given)


def test_a_quantized_checkpoint_says_each_layers_scheme() -> None:
    int8 = SCHEMES["w8a16"]
    layers = {"output_layer": [None], "decoder.layers.3.mlp.linear_fc2": [StoredScheme(8)]}
    settings = RunnerSettings.for_config(GLM_9B, "float32", StoredSchemes("GPTQ", layers))
    assert settings.scheme_of("output_layer") is None
    assert settings.scheme_of("decoder.layers.3.mlp.linear_fc2") == int8
    key = json.loads(json.dumps(settings.weight_format))
    assert QuantizationScheme(**key["stored_schemes"]["decoder.layers.3.mlp.linear_fc2"]) == int8
    plain = RunnerSettings.for_config(GLM_9B, "float32").weight_format
    assert "stored_schemes" not in plain  # caches of float checkpoints keep their key


def test_a_quantized_checkpoint_is_not_quantized_again() -> None:
    with pytest.raises(ConfigError, match="quantized already: leave it out"):
        RunnerSettings.for_config(GLM_9B, "float32", StoredSchemes("GPTQ"), quantization="w8a16")


def test_stored_schemes_are_no_setting_of_a_run() -> None:
    with pytest.raises(ConfigError, match="'stored_schemes' is not a setting"):
        RunnerSettings.with_defaults("float32", 64, stored_schemes=())


@pytest.mark.parametrize(
    ("given", "compute", "has_scales", "found"),
    [
        (None, "bfloat16", False, "float16"),
        ("auto", "float32", False, "float32"),
        ("auto", "float32", True, "int8"),
        ("fp16", "float32", True, "float16"),
        ("bf16", "float16", False, "bfloat16"),
        ("int8", "float32", False, "int8"),
    ],
)
def test_the_cache_has_the_type_that_is_asked_for_or_fits(
    given: str | None, compute: str, has_scales: bool, found: str
) -> None:
    settings = RunnerSettings.for_config(
        GLM_9B,
        compute,
        StoredSchemes(has_kv_scales=has_scales),
        params_dtype=compute,
        kv_cache_dtype=given,
    )
    assert settings.kv_dtype == found
    assert settings.uses_kv_scales == (has_scales and found == "int8")


def test_weights_depend_on_the_cache_where_it_has_the_checkpoints_scales_alone() -> None:
    plain = RunnerSettings.for_config(GLM_9B, "bfloat16")
    int8 = replace(plain, kv_cache_dtype="int8")
    assert plain.weight_format == int8.weight_format
    scaled = replace(plain, has_kv_scales=True)
    assert scaled.weight_format != plain.weight_format
    assert replace(scaled, kv_cache_dtype="float16").weight_format == plain.weight_format


@pytest.mark.parametrize("value", ["fp8", 8, "INT8"])
def test_a_cache_type_that_there_is_not_is_one_sentence(value: object) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_dtype must be auto, float16, .* or int8, got"):
        RunnerSettings.with_defaults("bfloat16", 64, kv_cache_dtype=value)
