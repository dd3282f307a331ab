"""ChatGLM's config.json: old and new revisions, each switch strictly, nothing else guessed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import ConfigError, UnsupportedError

# The keys of glm-4-9b-chat's config.json (public facts of the model); auto_map must do nothing.
CHAT_9B: dict[str, Any] = {
    "_name_or_path": "THUDM/glm4-9b-chat",
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_layers": 40,
    "rope_ratio": 500,
    "original_rope": True,
    "padded_vocab_size": 151552,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}
# An early revision of ChatGLM2-6B: fewer keys.
OLD_ABSENT = ("num_hidden_layers", "rope_ratio", "tie_word_embeddings", "_name_or_path")
SIZES = (
    "hidden_size",
    "ffn_hidden_size",
    "kv_channels",
    "layernorm_epsilon",
    "multi_query_group_num",
    "num_attention_heads",
    "num_layers",
    "padded_vocab_size",
    "seq_length",
)


def read(**changes: Any) -> GlmConfig:
    return GlmConfig.from_dict(CHAT_9B | changes, "config.json")


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in CHAT_9B.items() if key not in keys}


def test_glm_4_9b_chat_is_the_network_of_glm_4_9b_chat_hf():
    hugging_face = GlmConfig.from_dict(
        {
            "architectures": ["GlmForCausalLM"],
            "attention_bias": True,
            "eos_token_id": [151329, 151336, 151338],
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "max_position_embeddings": 131072,
            "model_type": "glm",
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "pad_token_id": 151329,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1.5625e-07,
            "rope_theta": 5000000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 151552,
        },
        "config.json",
    )
    assert replace(read(), model_type="glm", architecture="GlmForCausalLM") == hugging_face
    assert not read().has_sandwich_norms


def test_an_old_revision_reads_as_a_new_one_with_ratio_one():
    assert GlmConfig.from_dict(without(*OLD_ABSENT), "old") == read(rope_ratio=1)


def test_float_layers_are_read_and_written():
    config = read(float_layers_id=[0], world_size=1)
    assert config == replace(read(), float_layers_id=(0,))
    assert GlmConfig.from_dict(config.to_dict(), "again") == config


def test_a_ratio_of_null_is_an_absent_one():
    assert read(rope_ratio=None) == GlmConfig.from_dict(without("rope_ratio"), "config.json")


def test_both_class_names_are_the_same_network():
    name = "ChatGLMForConditionalGeneration"
    config = read(architectures=[name])
    assert config.architecture == name
    assert replace(config, architecture="ChatGLMModel") == read()
    assert read(architectures=None) == read()


def test_chat_1m_has_four_kv_heads_and_a_base_of_1e8():
    config = read(multi_query_group_num=4, rope_ratio=10000, seq_length=1048576)
    assert (config.num_key_value_heads, config.rope_theta) == (4, 1e8)
    assert config.kv_bytes_per_token("bfloat16") == 80 * 1024


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b", "chatglm3-6b-32k", "glm-4-9b-chat"])
def test_real_configs_load(name: str, shared_fixtures: Path):
    folder = shared_fixtures / "tokenizers" / name
    raw = json.loads((folder / "config.json").read_text())
    config = GlmConfig.from_hf(folder)
    assert config.num_hidden_layers == raw["num_layers"]
    assert config.rope_theta == 10000 * raw.get("rope_ratio", 1)
    assert (config.num_key_value_heads, config.head_dim, config.rotary_dim) == (2, 128, 64)
    assert config.attention_bias
    assert config.torch_dtype == raw["torch_dtype"]


@pytest.mark.parametrize("key", SIZES)
def test_a_missing_size_is_named(key: str):
    with pytest.raises(ConfigError, match=f"'{key}' is missing"):
        GlmConfig.from_dict(without(key, "num_hidden_layers"), "config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 41}, "num_layers is 40 and num_hidden_layers 41: make them agree"),
        ({"num_layers": "40", "num_hidden_layers": None}, "num_layers must be a whole number"),
        ({"multi_query_group_num": 3}, "num_attention_heads=32 must be a multiple of multi_query"),
        ({"kv_channels": 6}, "RoPE rotates pairs: kv_channels=6"),
        ({"seq_length": 0}, "seq_length must be from 1"),
        ({"layernorm_epsilon": 0}, "layernorm_epsilon must be a positive number"),
        ({"rope_ratio": "50"}, "rope_ratio must be a number"),
        ({"rope_ratio": 0}, "rope_ratio must be a positive number, it is 0"),
        ({"rope_ratio": -1.5}, "rope_ratio must be a positive number, it is -1.5"),
        ({"rope_ratio": 1e306}, "rope_ratio must be a positive number, it is 1e+306"),
        ({"rope_ratio": 10**400}, "rope_ratio must be a positive number"),
        ({"rmsnorm": 1}, "rmsnorm must be true or false, it is 1"),
        ({"add_qkv_bias": "yes"}, "add_qkv_bias must be true or false"),
        ({"float_layers_id": [40]}, "float_layers_id has layer 40, and num_layers=40 gives layers"),
        ({"float_layers_id": "0"}, "float_layers_id must be a list of layer numbers"),
        ({"rope_theta": 10000}, "rope_theta is 10000 and 10000 * rope_ratio is 5e+06"),
        ({"eos_token_id": "<|user|>"}, "eos_token_id must be a token id"),
    ],
)
def test_a_wrong_value_is_named_by_its_own_key(changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rmsnorm": False}, "rmsnorm must be true, it is false: false means LayerNorm"),
        ({"post_layer_norm": False}, "post_layer_norm must be true"),
        ({"apply_residual_connection_post_layernorm": True}, "must be false, it is true"),
        ({"add_bias_linear": True}, "a bias in every linear layer"),
        ({"multi_query_attention": False}, "interleaved by head"),
        ({"interleaved_qkv": True}, "interleaved_qkv must be false"),
        ({"original_rope": False}, "as CogAgent's"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be false"),
        ({"position_encoding_2d": True}, "the first ChatGLM-6B"),
        ({"pre_seq_len": 128}, "it has 'pre_seq_len', but prefixes of P-tuning"),
        ({"quantization": {"bits": 4}}, "it has 'quantization'"),
        ({"vision_config": {"image_size": 1120}}, "models that see images"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "by rope_ratio only"),
        ({"architectures": ["ChatGLMForSequenceClassification"]}, "'ChatGLMModel'] or ['ChatGLMF"),
        ({"_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 16}, "interpolates positions"),
    ],
)
def test_another_network_is_refused_by_its_key(changes: dict[str, Any], words: str):
    with pytest.raises(UnsupportedError) as caught:
        read(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_switch_has_the_official_default_even_if_that_is_refused():
    with pytest.raises(UnsupportedError, match="it is false where it is absent"):
        GlmConfig.from_dict(without("multi_query_attention"), "config.json")
    same = ("rmsnorm", "post_layer_norm", "add_bias_linear", "original_rope")
    assert GlmConfig.from_dict(without(*same), "config.json") == read()
    assert GlmConfig.from_dict(without("add_qkv_bias"), "config.json") == read(add_qkv_bias=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_seq_len": None, "quantization_bit": 0, "prefix_projection": False},
        {"vocab_size": 151552, "use_cache": False, "classifier_dropout": None},
        {"fp32_residual_connection": True, "apply_query_key_layer_scaling": False},
        {"num_hidden_layers": None},
        {"rope_theta": 5000000},
    ],
    ids=str,
)
def test_harmless_keys_change_nothing(changes: dict[str, Any]):
    assert read(**changes) == read()


@pytest.mark.parametrize("changes", [{}, {"rope_ratio": 0.3, "torch_dtype": None}], ids=str)
def test_what_is_written_reads_back(changes: dict[str, Any]):
    config = read(**changes)
    assert GlmConfig.from_dict(config.to_dict(), "again") == config
