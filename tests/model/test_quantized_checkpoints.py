"""Folders that are quantized already, against Hugging Face with the matrices that they mean."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mindformers_glm import LLM
from mindformers_glm.backends.cpu.footprint import count_weight_bytes
from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.weights.packed_cache import FOLDER_NAME
from tests import quantized_folders as folders
from tests.conftest import TOLERANCES, relative_error
from tests.model import chatglm_layout, hf_oracle

PROMPT = np.random.default_rng(1).integers(2, 500, 40).tolist()
# One of each way to the operators: by rows, by groups, by groups of more columns, with zero points,
# with columns in another order, as float.
CASES = [
    "slim-w8a16",
    "slim-w8a16-asymmetric",
    "slim-w4a16",
    "slim-w4a16-asymmetric",
    "slim-w4a16-groups-asymmetric",
    "ct-w4a16-asymmetric",
    "ct-w4a16-actorder",
    "ct-w8a16-groups",
    "ct-w8a16-groups-asymmetric",
    "gptq-v1",
    "gptq-v1-reordered",
    "gptq-v2-reordered-asymmetric",
    "gptq-int8",
    "gptq-int8-reordered-asymmetric",
    "awq",
    "ct-fp8",
]


def _logits(folder: Path, **settings: object) -> np.ndarray:
    with LLM(folder, max_model_len=64, **settings) as llm:
        return llm.logits(PROMPT)


def _tolerance(name: str) -> float:
    case = (folders.WEIGHT_ONLY | folders.CHATGLM)[name]
    return TOLERANCES["logits_w4a16" if case.is_kept else "logits_float32"]


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_matrices_that_are_meant(name: str, tmp_path: Path) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "float")
    meant = folders.write(source, tmp_path / "quantized", folders.WEIGHT_ONLY[name])
    folders.write_meant(source, tmp_path / "meant", meant)
    expected = hf_oracle.logits(tmp_path / "meant", PROMPT)
    found = _logits(tmp_path / "quantized")
    assert relative_error(found, expected) < _tolerance(name)


def test_chatglm_int4_runs(tmp_path: Path) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "float", model_type="glm")
    chatglm = chatglm_layout.to_chatglm(source, tmp_path / "chatglm")
    meant = folders.write(chatglm, tmp_path / "quantized", folders.CHATGLM["chatglm-int4"])
    folders.write_meant(chatglm, tmp_path / "meant", meant)
    expected = hf_oracle.logits(
        chatglm_layout.to_glm(tmp_path / "meant", tmp_path / "as_glm"), PROMPT
    )
    assert relative_error(_logits(tmp_path / "quantized"), expected) < _tolerance("chatglm-int4")


def test_float_layers_and_layers_of_two_schemes_run(tmp_path: Path) -> None:
    """A q that is float beside quantized k and v makes the layer float, with their values."""
    source = hf_oracle.save_random_checkpoint(tmp_path / "float")
    case = folders.WEIGHT_ONLY["gptq-v1"]
    meant = folders.write(source, tmp_path / "quantized", case)
    (file,) = (tmp_path / "quantized").glob("*.safetensors")
    lost = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    stored = load_file(file)
    kept = {
        name: tensor
        for name, tensor in stored.items()
        if name.rpartition(".")[0] not in lost or name.endswith(".bias")
    }
    save_file(kept | {f"{layer}.weight": meant[f"{layer}.weight"] for layer in lost}, file)
    folders.write_meant(source, tmp_path / "meant", meant)
    expected = hf_oracle.logits(tmp_path / "meant", PROMPT)
    with LLM(tmp_path / "quantized", max_model_len=64) as llm:
        assert llm.settings.scheme_of("decoder.layers.0.self_attention.linear_qkv") is None
        assert llm.settings.scheme_of("decoder.layers.1.self_attention.linear_qkv") is not None
        assert relative_error(llm.logits(PROMPT), expected) < _tolerance("gptq-v1")


def _shift_norms(folder: Path, case: folders.Case, hidden: int = 64) -> dict[str, np.ndarray]:
    """Give the norms before both linear layers of layer 1 a bias, as anti-outlier may."""
    rng = np.random.default_rng(3)
    (file,) = folder.glob("*.safetensors")
    biases = {
        f"model.layers.1.{norm}.bias": rng.normal(size=hidden).astype(np.float32)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    zeros = {"model.layers.0.input_layernorm.bias": np.zeros(hidden, np.float32)}
    folders.save(load_file(file) | biases | zeros, folder, case)
    return biases


@pytest.mark.parametrize("name", ["slim-w8a16", "slim-w4a16-groups-asymmetric"])
def test_biases_of_norms_are_added(name: str, tmp_path: Path) -> None:
    """The float matrices that were meant, behind norms with the biases, in transformers."""
    source, case = hf_oracle.save_random_checkpoint(tmp_path / "float"), folders.WEIGHT_ONLY[name]
    meant = folders.write(source, tmp_path / "quantized", case)
    biases = _shift_norms(tmp_path / "quantized", case)
    folders.write_meant(source, tmp_path / "meant", meant)
    model = hf_oracle.load(tmp_path / "meant")
    without = hf_oracle.logits_of(model, PROMPT)
    for norm, bias in biases.items():
        module = model.get_submodule(norm.removesuffix(".bias"))
        module.register_forward_hook(lambda _, __, out, bias=bias: out + torch.from_numpy(bias))
    expected = hf_oracle.logits_of(model, PROMPT)
    assert relative_error(without, expected) > 0.1
    with LLM(tmp_path / "quantized", max_model_len=64, packed_cache="on") as llm:
        assert relative_error(llm.logits(PROMPT), expected) < _tolerance(name)
        assert llm.settings.shifted_norms == (
            "decoder.layers.1.self_attention.linear_qkv",
            "decoder.layers.1.mlp.linear_fc1",
        )
    found = _logits(tmp_path / "quantized", packed_cache="on")
    assert relative_error(found, expected) < _tolerance(name)


def test_the_packed_cache_keeps_what_a_folder_says(tmp_path: Path) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "float")
    folders.write(source, tmp_path / "quantized", folders.WEIGHT_ONLY["slim-w4a16-groups"])
    expected = _logits(tmp_path / "quantized", packed_cache="on")
    assert len(list((tmp_path / "quantized" / FOLDER_NAME).iterdir())) == 1
    np.testing.assert_array_equal(_logits(tmp_path / "quantized", packed_cache="on"), expected)
    assert len(list((tmp_path / "quantized" / FOLDER_NAME).iterdir())) == 1


@pytest.mark.parametrize("is_shifted", [False, True])
def test_planned_bytes_are_the_real_ones(is_shifted: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 512}
    source = hf_oracle.save_random_checkpoint(tmp_path / "float", head_dim=32, **sizes)
    case = folders.WEIGHT_ONLY["slim-w8a16"]
    folders.write(source, tmp_path / "quantized", case)
    if is_shifted:
        _shift_norms(tmp_path / "quantized", case, hidden=128)
    with LLM(tmp_path / "quantized", max_model_len=64) as llm:
        assert count_weight_bytes(llm.config, llm.settings) == llm.weights_bytes
        assert bool(llm.settings.shifted_norms) == is_shifted


def test_quantizing_what_is_quantized_is_one_sentence(tmp_path: Path) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "float")
    folders.write(source, tmp_path / "quantized", folders.WEIGHT_ONLY["slim-w8a16"])
    with pytest.raises(ConfigError, match="are quantized already: leave it out") as caught:
        LLM(tmp_path / "quantized", quantization="w8a16")
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("name", folders.WITH_ACTIVATIONS)
def test_integer_activations_are_refused_by_name(name: str, tmp_path: Path) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "float")
    case = folders.WITH_ACTIVATIONS[name]
    folders.write(source, tmp_path / "quantized", case)
    with pytest.raises(UnsupportedError, match=case.kind or "W8A8") as caught:
        LLM(tmp_path / "quantized")
    assert "which this version reads and does not run" in str(caught.value)
