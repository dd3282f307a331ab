"""What fine-tuning and quantizing tools leave in a folder: let through by name, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules
from mindformers_glm.weights.shards import find_shards
from mindformers_glm.weights.share_writer import write_shares

OUTPUT, HEAD = "transformer.output_layer.weight", "lm_head.weight"
CONSTANT = "transformer.rotary_pos_emb.inv_freq"


class Target:
    """Takes what it is given."""

    def load(self, views) -> None:
        self.num_rows = sum(len(view.data) for view in views)


class SoundCache:
    """A packed cache that has everything."""

    def read(self) -> bool:
        return True


def load(folder: Path, rank: TensorParallel | None = None, **kwargs) -> int:
    config = GlmConfig.from_hf(folder)
    with Checkpoint.open(folder) as checkpoint:
        rules = build_rules(config, checkpoint.cuts(config, rank or TensorParallel()))
        targets = {rule.parameter: Target() for rule in rules}
        return load_weights(checkpoint, rules, targets, **kwargs)


def refusal(folder: Path, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def chatglm(chatglm_tensors) -> dict[str, np.ndarray]:
    del chatglm_tensors[CONSTANT]
    return chatglm_tensors


SURPLUS = {
    "TRL": ("v_head.summary.weight", "v_head.summary.bias"),
    "DeepSpeed-Chat": ("v_head.weight",),
    "trlx": ("v_head.0.weight", "v_head.0.bias", "v_head.2.weight", "v_head.2.bias"),
    "OpenRLHF": ("score.weight",),
    "value_head": ("value_head.weight", "value_head.bias"),
    "constant of ChatGLM": (CONSTANT,),
    "constant of a layer": ("model.layers.0.self_attn.rotary_emb.inv_freq",),
    "constant of GLM-4": ("model.rotary_emb.inv_freq",),
}


@pytest.mark.parametrize("names", SURPLUS.values(), ids=SURPLUS)
def test_surplus_of_the_list_is_one_named_line(
    chatglm, chatglm_config, write_folder, capsys, names
):
    folder = write_folder(chatglm | dict.fromkeys(names, np.ones(3, np.float32)), chatglm_config)
    load(folder)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(name in line for name in names)


def test_a_complete_folder_is_not_spoken_of(chatglm, chatglm_config, write_folder, capsys):
    load(write_folder(chatglm, chatglm_config))
    assert capsys.readouterr().err == ""


STRANGERS = (
    "v_head.summary.weights",
    "vv_head.weight",
    "transformer.prefix_encoder.embedding.weight",
    "transformer.encoder.layers.0.self_attention.dense.bias",
    "transformer.encoder.layer.0.mlp.dense_4h_to_h.weight",
    "lm_head.bias",
    "model.layers.0.mlp.rotary_emb.inv_freq",
)


@pytest.mark.parametrize("name", STRANGERS)
def test_any_other_surplus_stays_an_error(chatglm, chatglm_config, write_folder, name):
    folder = write_folder(chatglm | {name: np.ones(3, np.float32)}, chatglm_config)
    assert f"1 unknown: {name}" in refusal(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_hh.weight"),
        ("self_attention.dense.weight", "self_attn.dense.weight"),
        ("input_layernorm.weight", "input_layer_norm.weight"),
    ],
)
def test_a_misspelt_layer_stays_an_error_beside_a_value_head(
    chatglm, chatglm_config, write_folder, old: str, new: str
):
    layer = "transformer.encoder.layers.0."
    chatglm[layer + new] = chatglm.pop(layer + old)
    chatglm["v_head.summary.weight"] = np.ones((1, 24), np.float32)
    message = refusal(write_folder(chatglm, chatglm_config))
    assert f"1 missing: {layer}{old}" in message
    assert layer + new in message


def test_a_head_in_place_of_the_output_layer_is_an_error(chatglm, chatglm_config, write_folder):
    chatglm[HEAD] = chatglm.pop(OUTPUT)
    message = refusal(write_folder(chatglm, chatglm_config))
    assert f"1 missing: {OUTPUT}" in message
    assert f"1 unknown: {HEAD}" in message


@pytest.mark.parametrize("size", [1, 3])
def test_a_head_that_repeats_the_output_layer_is_noted(
    chatglm, chatglm_config, write_folder, capsys, size: int
):
    chatglm[HEAD] = chatglm[OUTPUT].copy()
    config = chatglm_config | {"multi_query_group_num": 1, "num_attention_heads": 3}
    layer = "transformer.encoder.layers.0.self_attention."
    chatglm[layer + "query_key_value.weight"] = np.ones((5 * 16, 24), np.float32)
    chatglm[layer + "query_key_value.bias"] = np.ones(5 * 16, np.float32)
    chatglm[layer + "dense.weight"] = np.ones((24, 3 * 16), np.float32)
    for name in ("mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"):
        shape = (2 * 42, 24) if "to_4h" in name else (24, 42)
        chatglm[f"transformer.encoder.layers.0.{name}"] = np.ones(shape, np.float32)
    folder = write_folder(chatglm, config | {"ffn_hidden_size": 42})
    load(folder, TensorParallel(size, size - 1))
    assert f"{HEAD} (repeats {OUTPUT})" in capsys.readouterr().err
    chatglm[HEAD][32, 23] += 1  # a row of the last rank
    save_file(chatglm, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{HEAD} .* is not the same as {OUTPUT}"):
        load(folder, TensorParallel(size, size - 1))
    assert capsys.readouterr().err == ""


CONTRADICTIONS = {
    "one bit": lambda head: np.ascontiguousarray(head) * np.where(np.arange(24) == 23, -1, 1),
    "another type": lambda head: head.astype(np.float16),
    "another size": lambda head: head[:30],
    "zeros": np.zeros_like,
    "its rows the other way round": lambda head: head[::-1],
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_head_that_contradicts_the_output_layer_is_an_error(
    chatglm, chatglm_config, write_folder, change
):
    head = np.ascontiguousarray(change(chatglm[OUTPUT]))
    if head.dtype == np.float64:
        head = head.astype(np.float32)
    assert HEAD in refusal(write_folder(chatglm | {HEAD: head}, chatglm_config))


def test_tied_embeddings_and_another_head_are_an_error(tensors, raw_config, write_folder):
    # transformers 4 takes the embedding, transformers 5 the head: nobody can tell what is meant.
    message = refusal(write_folder(tensors, raw_config | {"tie_word_embeddings": True}))
    assert f"{HEAD} in " in message
    assert "tie_word_embeddings false" in message


def test_heads_are_compared_a_chunk_at_a_time(
    chatglm, chatglm_config, write_folder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mindformers_glm.weights.tensor_view._CHUNK_BYTES", 5 * 24 * 4)
    head = chatglm[OUTPUT].copy()
    folder = write_folder(chatglm | {HEAD: head}, chatglm_config)
    load(folder)
    head[32, 0] += 1  # in the last chunk, which is a short one
    save_file(chatglm | {HEAD: head}, folder / "model.safetensors")
    assert "is not the same" in refusal(folder)


def test_the_line_comes_with_a_packed_cache_too(chatglm, chatglm_config, write_folder, capsys):
    folder = write_folder(chatglm | {"score.weight": np.ones((1, 24), np.float32)}, chatglm_config)
    assert load(folder, cache=SoundCache()) == 0
    assert "score.weight (a value head)" in capsys.readouterr().err


def test_cutting_a_folder_leaves_surplus_out_and_says_so(
    chatglm, chatglm_config, write_folder, tmp_path, capsys
):
    folder = write_folder(chatglm | {"v_head.weight": np.ones(24, np.float32)}, chatglm_config)
    write_shares(folder, tmp_path / "cut", 1)
    assert "v_head.weight (a value head)" in capsys.readouterr().err
    assert "v_head.weight" not in Checkpoint.open(tmp_path / "cut").entries
    chatglm[HEAD] = chatglm[OUTPUT] + 1
    save_file(chatglm, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not the same"):
        write_shares(folder, tmp_path / "again", 1)


LAYER = "transformer.encoder.layers.0.self_attention.dense"
QUANTIZED = {
    "GPTQ": ({"qweight": np.int32, "qzeros": np.int32, "scales": np.float16}, True),
    "AWQ without g_idx": ({"qweight": np.int32, "scales": np.float16}, True),
    "MLX": ({"weight": np.uint32, "scales": np.float16, "biases": np.float16}, True),
    "bitsandbytes int8": ({"weight": np.int8, "SCB": np.float32}, True),
    "bitsandbytes nf4": (
        {
            "weight": np.uint8,
            "weight.absmax": np.uint8,
            "weight.quant_map": np.float32,
            "weight.quant_state.bitsandbytes__nf4": np.uint8,
        },
        True,
    ),
    "ChatGLM int4": ({"weight": np.int8, "weight_scale": np.float16}, True),
    "FP8 by its scales": ({"weight_scale_inv": np.float32}, False),
    "EXL2": ({"q_weight": np.int32, "q_scale": np.int32, "q_invperm": np.int16}, True),
    "HQQ": ({"W_q": np.uint8, "scale": np.float16, "zero": np.float16}, True),
    "msModelSlim": ({"weight": np.int8, "deq_scale": np.float32, "quant_bias": np.int32}, True),
    "compressed-tensors": ({"weight_packed": np.int32, "weight_scale": np.float16}, True),
}


@pytest.mark.parametrize(("parts", "is_replaced"), QUANTIZED.values(), ids=QUANTIZED)
def test_quantized_tensors_without_a_key_are_called_so(
    chatglm, chatglm_config, write_folder, parts, is_replaced: bool
):
    if is_replaced:
        del chatglm[f"{LAYER}.weight"]
    chatglm |= {f"{LAYER}.{name}": np.ones((24, 8), dtype) for name, dtype in parts.items()}
    message = refusal(write_folder(chatglm, chatglm_config), UnsupportedError)
    assert "quantized checkpoints are not supported in that form" in message
    assert "missing" not in message


def test_other_keys_of_quantizing_tools_are_refused(chatglm, chatglm_config, write_folder):
    key = {"quantization": {"group_size": 64, "bits": 4}}  # MLX
    folder = write_folder(chatglm, chatglm_config | key)
    assert "quantized checkpoints are not supported in that form" in refusal(
        folder, UnsupportedError
    )


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_a_file_of_a_quantizing_tool_tells_where_weights_are_of_its_own_format(
    tmp_path: Path, name: str
):
    (tmp_path / name).write_text('{"bits": 4}')
    (tmp_path / "gptq_model-4bit-128g.pt").write_bytes(b"x")
    with pytest.raises(
        UnsupportedError, match="quantized checkpoints are not supported in that form"
    ):
        find_shards(tmp_path)


def test_gguf_alone_is_told(tmp_path: Path):
    (tmp_path / "glm-4-9b-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match=r"holds GGUF \(glm-4-9b-Q4_K_M\.gguf\)"):
        find_shards(tmp_path)


def add_adapter(folder: Path, name: str = "adapter_model.safetensors", **config: object) -> None:
    parts = {"base_model.model.q.lora_A.weight": np.ones((2, 24), np.float32)}
    save_file(parts, folder / name)
    if name.startswith("adapter_model"):
        (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "adapter_model-00001-of-00002.safetensors",
        "adapters.safetensors",
        "0000100_adapters.safetensors",
    ],
)
def test_an_adapter_beside_weights_is_one_line(
    tensors, raw_config, write_folder, capsys, num_shards: int, has_index: bool, name: str
):
    folder = write_folder(tensors, raw_config, num_shards=num_shards)
    if not has_index:
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    add_adapter(folder, name, peft_type="LORA")
    load(folder)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"holds a LoRA adapter ({name}), which is not applied" in line


def test_the_kind_of_adapter_is_told_and_a_broken_config_of_it_does_not_matter(
    tensors, raw_config, write_folder, capsys
):
    folder = write_folder(tensors, raw_config)
    add_adapter(folder, peft_type="IA3")
    load(folder)
    assert "holds an adapter of type IA3" in capsys.readouterr().err
    (folder / "adapter_config.json").write_text("{")
    load(folder)
    assert "holds a LoRA adapter" in capsys.readouterr().err


@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_alone_names_the_model_to_merge_it_with(
    tmp_path: Path, raw_config, has_config: bool
):
    add_adapter(tmp_path, peft_type="LORA", base_model_name_or_path="THUDM/chatglm3-6b")
    if has_config:
        (tmp_path / "config.json").write_text(json.dumps(raw_config))
    message = refusal(tmp_path, UnsupportedError)
    assert "a LoRA adapter without its model" in message
    assert "base_model_name_or_path (THUDM/chatglm3-6b)" in message


def test_an_adapter_that_is_not_merged_into_its_names_is_called_so(
    tensors, raw_config, write_folder
):
    wrapped = {f"base_model.model.{name}": array for name, array in tensors.items()}
    wrapped["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] = np.ones(
        (2, 24), np.float32
    )
    folder = write_folder(wrapped, raw_config)
    with Checkpoint.open(folder) as checkpoint, pytest.raises(CheckpointError, match="LoRA"):
        check_rules(build_rules(GlmConfig.from_hf(folder)), checkpoint)


def test_weight_files_that_are_not_read_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(folder)
    assert "not used" not in capsys.readouterr().err
    save_file({"old": np.zeros(2, np.float32)}, folder / "old.safetensors")
    save_file({"lora": np.zeros(2, np.float32)}, folder / "adapter_model.safetensors")
    load(folder)
    told = [x for x in capsys.readouterr().err.splitlines() if "not used" in x]
    assert len(told) == 1
    assert told[0].endswith("old.safetensors (other weights run in their place)")
