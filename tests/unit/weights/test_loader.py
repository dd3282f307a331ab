"""Loading: every parameter once, the right rows, whatever the shards look like."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.weights.checkpoint import Checkpoint, TensorView
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.rules import build_rules, resolve_attention_bias


class RecordingTarget:
    """Copies what it is given, as a packing target does, and counts."""

    def __init__(self, order: list[str]) -> None:
        self.array: np.ndarray | None = None
        self.dtypes: list[str] = []
        self._order = order

    def load(self, views: Sequence[TensorView]) -> None:
        assert self.array is None, "loaded twice"
        self.array = np.concatenate([view.data for view in views])
        self.dtypes = [view.dtype for view in views]
        self._order += [view.name for view in views]


def load(folder: Path) -> tuple[dict[str, RecordingTarget], list[str]]:
    order: list[str] = []
    with Checkpoint.open(folder) as checkpoint:
        rules = build_rules(resolve_attention_bias(GlmConfig.from_hf(folder), checkpoint))
        targets = {rule.parameter: RecordingTarget(order) for rule in rules}
        load_weights(checkpoint, rules, targets)
    return targets, order


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_every_parameter_is_filled_once_with_its_rows_stacked(tensors, write_folder, num_shards):
    targets, order = load(write_folder(tensors, num_shards=num_shards))
    assert sorted(order) == sorted(tensors)
    layer = "model.layers.1."
    expected = {
        "embedding.word_embeddings.weight": ["model.embed_tokens.weight"],
        "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight": [
            layer + "input_layernorm.weight"
        ],
        "decoder.layers.1.self_attention.linear_qkv.weight": [
            f"{layer}self_attn.{x}_proj.weight" for x in "qkv"
        ],
        "decoder.layers.1.self_attention.linear_qkv.bias": [
            f"{layer}self_attn.{x}_proj.bias" for x in "qkv"
        ],
        "decoder.layers.1.self_attention.linear_proj.weight": [layer + "self_attn.o_proj.weight"],
        "decoder.layers.1.post_self_attn_layernorm.weight": [
            layer + "post_self_attn_layernorm.weight"
        ],
        "decoder.layers.1.mlp.linear_fc1.layer_norm_weight": [
            layer + "post_attention_layernorm.weight"
        ],
        "decoder.layers.1.mlp.linear_fc1.weight": [layer + "mlp.gate_up_proj.weight"],
        "decoder.layers.1.mlp.linear_fc2.weight": [layer + "mlp.down_proj.weight"],
        "decoder.layers.1.post_mlp_layernorm.weight": [layer + "post_mlp_layernorm.weight"],
        "decoder.final_layernorm.weight": ["model.norm.weight"],
        "output_layer.weight": ["lm_head.weight"],
    }
    for parameter, names in expected.items():
        np.testing.assert_array_equal(
            targets[parameter].array, np.concatenate([tensors[name] for name in names])
        )
    assert len(targets) == 3 + 3 * 9


def test_tensors_are_read_in_file_order(tensors, write_folder):
    folder = write_folder(tensors)
    _, order = load(folder)
    entries = Checkpoint.open(folder).entries
    first_of_rule = [
        name for name in order if not any(part in name for part in ("k_proj", "v_proj"))
    ]
    begins = [entries[name].begin for name in first_of_rule]
    assert begins == sorted(begins)


def test_tied_embeddings_fill_both_ends(tensors, raw_config, write_folder):
    del tensors["lm_head.weight"]
    targets, _ = load(write_folder(tensors, raw_config | {"tie_word_embeddings": True}))
    np.testing.assert_array_equal(
        targets["output_layer.weight"].array, tensors["model.embed_tokens.weight"]
    )
    np.testing.assert_array_equal(
        targets["embedding.word_embeddings.weight"].array, tensors["model.embed_tokens.weight"]
    )


def test_tied_embeddings_win_over_a_stored_lm_head(tensors, raw_config, write_folder):
    targets, _ = load(write_folder(tensors, raw_config | {"tie_word_embeddings": True}))
    np.testing.assert_array_equal(
        targets["output_layer.weight"].array, tensors["model.embed_tokens.weight"]
    )


def test_dtypes_may_differ_among_the_tensors_of_one_parameter(tensors, write_folder):
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors[name] = tensors[name].astype(np.float16)
    targets, _ = load(write_folder(tensors))
    assert targets["decoder.layers.0.self_attention.linear_qkv.weight"].dtypes == [
        "float32",
        "float16",
        "float32",
    ]


def test_wrong_tensors_are_told_before_anything_is_loaded(tensors, write_folder):
    del tensors["model.layers.2.mlp.down_proj.weight"]
    folder = write_folder(tensors)
    order: list[str] = []
    with Checkpoint.open(folder) as checkpoint:
        rules = build_rules(GlmConfig.from_hf(folder))
        targets = {rule.parameter: RecordingTarget(order) for rule in rules}
        with pytest.raises(CheckpointError, match=r"1 missing: model\.layers\.2\.mlp\.down_proj"):
            load_weights(checkpoint, rules, targets)
    assert order == []


def test_a_target_may_keep_its_view_after_the_checkpoint_is_closed(tensors, write_folder):
    class KeepingTarget:
        def load(self, views: Sequence[TensorView]) -> None:
            self.views = views

    folder = write_folder(tensors)
    with Checkpoint.open(folder) as checkpoint:
        rules = build_rules(GlmConfig.from_hf(folder))
        targets = {rule.parameter: KeepingTarget() for rule in rules}
        load_weights(checkpoint, rules, targets)
    kept = targets["embedding.word_embeddings.weight"].views[0].data
    np.testing.assert_array_equal(kept, tensors["model.embed_tokens.weight"])


def test_no_bar_is_drawn_when_stderr_is_not_a_terminal(tensors, write_folder, capsys):
    load(write_folder(tensors))
    assert capsys.readouterr().err == ""


def test_transformers_own_files_fill_every_parameter(tmp_path):
    """The outside oracle for names and shapes: what `save_pretrained` of Hugging Face writes."""
    torch = pytest.importorskip("torch")
    from transformers import Glm4Config, Glm4ForCausalLM

    for is_32b_like in (False, True):
        torch.manual_seed(0)
        config = Glm4Config(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=6 if is_32b_like else 4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=37,
            pad_token_id=0,
            attention_bias=not is_32b_like,
        )
        model = Glm4ForCausalLM(config).to(torch.bfloat16)
        folder = tmp_path / str(is_32b_like)
        model.save_pretrained(folder, max_shard_size="30KB")
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1
        targets, order = load(folder)
        state = model.state_dict()
        assert sorted(order) == sorted(state)
        attention = "model.layers.1.self_attn"
        qkv = torch.cat([state[f"{attention}.{x}_proj.weight"] for x in "qkv"])
        loaded = targets["decoder.layers.1.self_attention.linear_qkv.weight"]
        assert loaded.dtypes == ["bfloat16"] * 3
        np.testing.assert_array_equal(
            loaded.array, qkv.contiguous().view(torch.int16).numpy().view(np.uint16)
        )
        assert ("decoder.layers.1.self_attention.linear_qkv.bias" in targets) is not is_32b_like
