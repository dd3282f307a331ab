"""The checkpoint must hold exactly what the rules ask for; one error names what it does not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules, resolve_attention_bias


def check(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    check_rules(build_rules(GlmConfig.from_hf(folder)), checkpoint)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def without_biases(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in tensors.items() if not name.endswith("bias")}


def test_a_complete_checkpoint_passes(tensors, write_folder):
    check(write_folder(tensors, num_shards=2))


def test_a_checkpoint_without_biases_passes(tensors, raw_config, write_folder):
    check(write_folder(without_biases(tensors), raw_config | {"attention_bias": False}))


@pytest.mark.parametrize(
    ("changes", "num_parameters"),
    [
        # GLM-4-9B-0414: 9.4 G, and GLM-4-32B-0414: 32.57 G parameters (llama.cpp conversion logs)
        ({}, 9.40e9),
        (
            {
                "hidden_size": 6144,
                "intermediate_size": 23040,
                "num_hidden_layers": 61,
                "num_attention_heads": 48,
                "attention_bias": False,
            },
            32.57e9,
        ),
    ],
    ids=["9B", "32B"],
)
def test_rules_of_the_released_models_count_their_parameters(raw_config, changes, num_parameters):
    of_9b = {
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "head_dim": 128,
        "vocab_size": 151552,
    }
    rules = build_rules(GlmConfig.from_dict(raw_config | of_9b | changes, "config.json"))
    count = sum(math.prod(source.shape) for rule in rules for source in rule.sources)
    assert count == pytest.approx(num_parameters, rel=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.v_proj.bias",
        "model.layers.2.post_mlp_layernorm.weight",
    ],
)
def test_a_missing_tensor_is_named(tensors, write_folder, name):
    del tensors[name]
    assert f"1 missing: {name} (is a shard missing?)" in refusal(write_folder(tensors))


def test_many_missing_tensors_are_counted(tensors, write_folder):
    kept = {name: array for name, array in tensors.items() if "model.layers.1." not in name}
    message = refusal(write_folder(kept))
    assert "13 missing: model.layers.1.input_layernorm.weight, " in message
    assert "and 8 more" in message


def test_missing_last_layers_name_num_hidden_layers(tensors, raw_config, write_folder):
    message = refusal(write_folder(tensors, raw_config | {"num_hidden_layers": 4}))
    assert "layers 0 to 2 are there, config.json says that there are 4" in message


def test_layers_beyond_the_config_name_num_hidden_layers(tensors, raw_config, write_folder):
    message = refusal(write_folder(tensors, raw_config | {"num_hidden_layers": 2}))
    assert "13 unknown: model.layers.2." in message
    assert "(config.json says that there are 2 layers)" in message
    assert "missing" not in message


def test_an_unknown_tensor_is_named(tensors, write_folder):
    tensors["model.layers.0.self_attn.o_proj.bias"] = np.zeros(24, np.float32)
    message = refusal(write_folder(tensors))
    assert message.endswith("1 unknown: model.layers.0.self_attn.o_proj.bias.")


def test_rotary_constants_are_let_through(tensors, write_folder):
    tensors["model.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    check(write_folder(tensors))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"vocab_size": 34},
            "lm_head.weight is [33, 24], expected [34, 24] by vocab_size",
        ),
        (
            {"intermediate_size": 20},
            "model.layers.0.mlp.gate_up_proj.weight is [80, 24], expected [40, 24] "
            "by 2 * intermediate_size",
        ),
        (
            {"num_key_value_heads": 1},
            "model.layers.0.self_attn.k_proj.weight is [32, 24], expected [16, 24] "
            "by num_key_value_heads * head_dim",
        ),
        (
            {"num_attention_heads": 8},
            "model.layers.0.self_attn.o_proj.weight is [24, 64], expected [24, 128] "
            "by num_attention_heads * head_dim",
        ),
        (
            {"hidden_size": 32},
            "model.embed_tokens.weight is [33, 24], expected [33, 32] by hidden_size",
        ),
    ],
)
def test_a_wrong_shape_names_both_shapes_and_the_config_key(
    tensors, raw_config, write_folder, changes, words
):
    message = refusal(write_folder(tensors, raw_config | changes))
    assert " of another shape: " in message
    assert words in message


def test_wrong_rank_is_a_wrong_shape(tensors, write_folder):
    tensors["model.norm.weight"] = np.zeros((24, 1), np.float32)
    words = "model.norm.weight is [24, 1], expected [24]"
    assert words in refusal(write_folder(tensors))


def test_a_transposed_weight_is_a_wrong_shape(tensors, write_folder):
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    words = f"{name} is [40, 24], expected [24, 40] by hidden_size, intermediate_size"
    assert words in refusal(write_folder(tensors))


def test_weights_that_are_not_floating_point_are_named(tensors, write_folder):
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].astype(np.int8)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    message = refusal(write_folder(tensors))
    assert f"{name} is int8" in message
    assert "model.norm.weight is float64" in message


def test_several_kinds_of_problems_are_one_sentence(tensors, write_folder):
    tensors["stranger"] = tensors.pop("model.norm.weight")
    message = refusal(write_folder(tensors))
    assert "1 missing: model.norm.weight" in message
    assert "1 unknown: stranger" in message


def test_a_missing_lm_head_hints_at_tied_embeddings(tensors, write_folder):
    del tensors["lm_head.weight"]
    assert "config.json may lack tie_word_embeddings" in refusal(write_folder(tensors))


def resolve(folder: Path) -> GlmConfig:
    return resolve_attention_bias(GlmConfig.from_hf(folder), Checkpoint.open(folder))


@pytest.mark.parametrize("says", [False, True])
@pytest.mark.parametrize("holds", [False, True])
def test_the_tensors_decide_attention_bias(
    tensors, raw_config, write_folder, capsys, says: bool, holds: bool
):
    held = tensors if holds else without_biases(tensors)
    folder = write_folder(held, raw_config | {"attention_bias": says})
    config = resolve(folder)
    assert config.attention_bias is holds
    check_rules(build_rules(config), Checkpoint.open(folder))
    note = capsys.readouterr().err
    if says == holds:
        assert note == ""
    else:
        assert note.count("\n") == 1
        assert f"attention_bias={str(says).lower()}" in note


def test_layers_that_disagree_on_biases_are_refused(tensors, write_folder):
    kept = {n: a for n, a in tensors.items() if "layers.2.self_attn.k_proj.bias" not in n}
    with pytest.raises(CheckpointError, match=r"8 of 9 .* model\.layers\.2\.self_attn\.k_proj"):
        resolve(write_folder(kept))


def test_biases_of_missing_layers_do_not_count(tensors, raw_config, write_folder):
    # The missing layer itself is what check_rules tells.
    folder = write_folder(tensors, raw_config | {"num_hidden_layers": 4})
    assert resolve(folder).attention_bias is True


def test_a_checkpoint_without_any_layer_keeps_the_config(tmp_path: Path, raw_config: Any):
    save_file({"model.norm.weight": np.zeros(24, np.float32)}, tmp_path / "model.safetensors")
    config = GlmConfig.from_dict(raw_config, "config.json")
    assert resolve_attention_bias(config, Checkpoint.open(tmp_path)) is config


@pytest.mark.parametrize("name", ["glm4_float", "glm_float", "chatglm_float"])
def test_msmodelslim_source_checkpoints_pass(shared_fixtures: Path, name: str):
    check(shared_fixtures / "msmodelslim" / name)


def test_every_tensor_of_the_real_chatglm3_is_accounted_for(shared_fixtures: Path):
    folder = shared_fixtures / "tokenizers" / "chatglm3-6b-32k"
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    sources = [s for rule in build_rules(GlmConfig.from_hf(folder)) for s in rule.sources]
    constant = "transformer.rotary_pos_emb.inv_freq"
    assert sorted(index["weight_map"]) == sorted([constant, *(s.name for s in sources)])
    # Two bytes each; the constant has one number for each pair of rotated columns.
    num_elements = sum(math.prod(source.shape) for source in sources) + 32
    assert 2 * num_elements == index["metadata"]["total_size"]


def test_a_complete_chatglm_checkpoint_passes(write_folder, chatglm_config, chatglm_tensors):
    check(write_folder(chatglm_tensors, chatglm_config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"multi_query_group_num": 1},
            "query_key_value.weight is [128, 24], expected [96, 24] by num_attention_heads * "
            "kv_channels + 2 * multi_query_group_num * kv_channels",
        ),
        ({"ffn_hidden_size": 20}, "expected [40, 24] by 2 * ffn_hidden_size"),
        ({"num_layers": 2}, "layers 0 to 0 are there, config.json says that there are 2"),
        ({"padded_vocab_size": 65024}, "expected [65024, 24] by padded_vocab_size"),
    ],
)
def test_chatglm_refusals_name_its_own_keys(
    write_folder, chatglm_config, chatglm_tensors, changes, words
):
    assert words in refusal(write_folder(chatglm_tensors, chatglm_config | changes))


@pytest.mark.parametrize("says", [False, True])
def test_the_tensors_of_chatglm_decide_its_bias(
    write_folder, chatglm_config, chatglm_tensors, capsys, says: bool
):
    folder = write_folder(chatglm_tensors, chatglm_config | {"add_qkv_bias": says})
    assert resolve(folder).attention_bias is True
    assert ("add_qkv_bias=false" in capsys.readouterr().err) is not says


def test_a_missing_chatglm_output_layer_gets_no_hint_at_tied_weights(
    write_folder, chatglm_config, chatglm_tensors
):
    del chatglm_tensors["transformer.output_layer.weight"]
    message = refusal(write_folder(chatglm_tensors, chatglm_config))
    assert "1 missing: transformer.output_layer.weight (is a shard missing?)" in message
