"""Loading: every parameter once, the right rows, whatever the shards look like."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import cut_blocks
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.rules import build_rules, resolve_attention_bias
from mindformers_glm.weights.tensor_view import TensorView
from tests.unit.core.glm_9b import GLM_9B


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
        self._order += dict.fromkeys(view.name for view in views)  # the halves of gate_up are two


def load(folder: Path) -> tuple[dict[str, RecordingTarget], list[str]]:
    order: list[str] = []
    with Checkpoint.open(folder) as checkpoint:
        rules = build_rules(resolve_attention_bias(GlmConfig.from_hf(folder), checkpoint))
        targets = {rule.parameter: RecordingTarget(order) for rule in rules}
        load_weights(checkpoint, rules, targets)
    return targets, order


def load_share(folder: Path, tensor_parallel: TensorParallel) -> tuple[dict[str, np.ndarray], int]:
    """What one rank loads of a whole checkpoint, and how many bytes it reads for that."""
    with Checkpoint.open(folder) as checkpoint:
        config = GlmConfig.from_hf(folder)
        rules = build_rules(config, cut_blocks(config, tensor_parallel))
        targets = {rule.parameter: RecordingTarget([]) for rule in rules}
        num_bytes = load_weights(checkpoint, rules, targets)
    return {name: target.array for name, target in targets.items()}, num_bytes


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


def test_tied_embeddings_may_be_stored_twice(tensors, raw_config, write_folder):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
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


@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_loads_its_own_share(tensors, raw_config, write_folder, size):
    tensors |= {
        name: np.random.default_rng(1).standard_normal((32, 24), np.float32)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    folder = write_folder(tensors, raw_config | {"vocab_size": 32}, num_shards=2)
    layer = "model.layers.1."
    q, k, v = (tensors[f"{layer}self_attn.{x}_proj.weight"] for x in "qkv")
    gate, up = np.split(tensors[layer + "mlp.gate_up_proj.weight"], 2)
    for rank in range(size):
        arrays, num_bytes = load_share(folder, TensorParallel(size, rank))

        def part(tensor, axis=0, rank=rank):
            return np.split(tensor, size, axis)[rank]

        def kv_head(tensor, rank=rank):
            return np.split(tensor, 2)[rank * 2 // size]  # two key-value heads

        expected = {
            "embedding.word_embeddings.weight": part(tensors["model.embed_tokens.weight"]),
            "output_layer.weight": part(tensors["lm_head.weight"]),
            "decoder.layers.1.self_attention.linear_qkv.weight": np.concatenate(
                [part(q), kv_head(k), kv_head(v)]
            ),
            "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight": tensors[
                layer + "input_layernorm.weight"
            ],
            "decoder.layers.1.self_attention.linear_proj.weight": part(
                tensors[layer + "self_attn.o_proj.weight"], 1
            ),
            "decoder.layers.1.mlp.linear_fc1.weight": np.concatenate([part(gate), part(up)]),
            "decoder.layers.1.mlp.linear_fc2.weight": part(
                tensors[layer + "mlp.down_proj.weight"], 1
            ),
        }
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array)
        assert num_bytes == sum(array.nbytes for array in arrays.values())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_rank_loads_its_own_share_of_chatglms_fused_tensors(
    chatglm_tensors, chatglm_config, write_folder, size
):
    table = np.random.default_rng(2).standard_normal((32, 24), np.float32)
    ends = ("embedding.word_embeddings.weight", "output_layer.weight")
    chatglm_tensors |= {f"transformer.{name}": table for name in ends}
    folder = write_folder(chatglm_tensors, chatglm_config | {"padded_vocab_size": 32})
    layer = "transformer.encoder.layers.0."
    attention, mlp = f"{layer}self_attention.", f"{layer}mlp."
    gate, up = np.split(chatglm_tensors[mlp + "dense_h_to_4h.weight"], 2)
    for rank in range(size):
        arrays, _ = load_share(folder, TensorParallel(size, rank))
        # 4 query heads, 2 key heads, 2 value heads of 16.
        head = rank * 2 // size
        heads = [
            *range(rank * 4 // size, (rank + 1) * 4 // size),
            *(4 + head, 6 + head if size > 1 else 5),
            *((6, 7) if size == 1 else ()),
        ]
        for kind in ("weight", "bias"):
            fused = chatglm_tensors[f"{attention}query_key_value.{kind}"]
            fused = fused.reshape(8, 16, *fused.shape[1:])
            found = arrays[f"decoder.layers.0.self_attention.linear_qkv.{kind}"]
            np.testing.assert_array_equal(found, np.concatenate([fused[i] for i in heads]))
        expected = {
            "mlp.linear_fc1.weight": [np.split(half, size)[rank] for half in (gate, up)],
            "mlp.linear_fc2.weight": [
                np.split(chatglm_tensors[mlp + "dense_4h_to_h.weight"], size, 1)[rank]
            ],
            "self_attention.linear_proj.weight": [
                np.split(chatglm_tensors[attention + "dense.weight"], size, 1)[rank]
            ],
        }
        for name, parts in expected.items():
            np.testing.assert_array_equal(arrays[f"decoder.layers.0.{name}"], np.concatenate(parts))


def test_a_single_rank_reads_every_byte(tensors, write_folder):
    _, num_bytes = load_share(write_folder(tensors), TensorParallel())
    assert num_bytes == sum(array.nbytes for array in tensors.values())


def test_a_rank_of_two_reads_little_more_than_half_of_the_9b():
    for rank, share in ((0, 0.504), (1, 0.497)):  # 54 and 53 of 107 groups of inner columns
        cuts = cut_blocks(GLM_9B, TensorParallel(2, rank))
        sources = [source for rule in build_rules(GLM_9B, cuts) for source in rule.sources]
        read = sum(piece.num_elements for source in sources for piece in source.pieces)
        stored = sum(int(np.prod(source.shape)) for source in sources)
        assert read / stored == pytest.approx(share, abs=0.001)


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
