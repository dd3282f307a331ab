"""Quantized folders through the registered classes, against Hugging Face with their layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindformers import AutoConfig, AutoModel

from mindformers_glm import Glm4ForCausalLM
from mindformers_glm.core.errors import ConfigError, UnsupportedError
from tests import quantized_folders as folders
from tests.model import hf_oracle, stored_oracle

FLOAT32 = {"params_dtype": "float32", "compute_dtype": "float32", "device_target": "CPU"}
NUM_TOKENS = 6
PROMPT = np.random.default_rng(4).integers(2, 250, 9).tolist()
CASES = folders.WEIGHT_ONLY | folders.WITH_ACTIVATIONS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hf")
    return hf_oracle.save_random_checkpoint(root / "hf", vocab_size=256, attention_bias=True)


def write(source: Path, tmp_path: Path, name: str) -> tuple[Path, list[int]]:
    """A quantized folder, and the greedy answer of Hugging Face with its layers."""
    folders.write(source, tmp_path / name, CASES[name])
    model = hf_oracle.load(source)
    stored_oracle.put_into(model, tmp_path / name)
    return tmp_path / name, PROMPT + hf_oracle.greedy_tokens_of(model, PROMPT, NUM_TOKENS)


def answer(network: Any) -> list[int]:
    return network.generate(PROMPT, do_sample=False, max_new_tokens=NUM_TOKENS)[0].tolist()


@pytest.mark.parametrize("name", ["slim-w8a8", "gptq-v1-asymmetric", "slim-w8a16"])
def test_from_pretrained_and_load_weights_run_its_integers(
    name: str, source: Path, tmp_path: Path
) -> None:
    folder, expected = write(source, tmp_path, name)
    network = AutoModel.from_pretrained(str(folder), **FLOAT32)
    assert answer(network) == expected
    assert network.num_weight_bytes() < Path(source / "model.safetensors").stat().st_size
    config = AutoConfig.from_pretrained(str(folder))
    for key, value in FLOAT32.items():
        setattr(config, key, value)
    network = AutoModel.from_config(config)
    network.load_weights(str(folder))
    assert answer(network) == expected


def test_other_weights_must_be_quantized_alike(source: Path, tmp_path: Path) -> None:
    first, _ = write(source, tmp_path, "slim-w8a16")
    second, _ = write(source, tmp_path, "slim-w8a8")
    network = Glm4ForCausalLM.from_pretrained(str(first), **FLOAT32)
    before = answer(network)
    for other in (second, source):
        with pytest.raises(UnsupportedError, match="is quantized otherwise than the weights that"):
            network.load_weights(str(other))
    assert answer(network) == before
    network.load_weights(str(first))
    assert answer(network) == before


def test_a_quantized_folder_is_not_quantized_again(source: Path, tmp_path: Path) -> None:
    folder, _ = write(source, tmp_path, "slim-w8a16")
    with pytest.raises(ConfigError, match="quantized already: leave it out"):
        Glm4ForCausalLM.from_pretrained(str(folder), **FLOAT32, quantization="w8a16")


def test_weights_that_the_environment_asks_for_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENABLE_QUANT", "1")
    monkeypatch.setenv("QUANT_WEIGHT_PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="unset ENABLE_QUANT and ENABLE_SPARSE"):
        Glm4ForCausalLM.from_pretrained(str(source), **FLOAT32)
