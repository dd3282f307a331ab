"""config.json's float_layers_id: layers that stay float when the others are quantized."""

import json
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm import LLM
from mindformers_glm.backends.cpu.footprint import count_weight_bytes
from tests.conftest import TOLERANCES, relative_error
from tests.model import hf_oracle, quantized_oracle
from tests.model.chatglm_layout import to_chatglm

PROMPT = list(range(5, 45))
# Nothing is padded to full tiles.
FULL_TILES = {"vocab_size": 512}


def logits(folder: Path, quantization: str | None, packed_cache: str = "off") -> np.ndarray:
    with LLM(folder, quantization=quantization, packed_cache=packed_cache) as llm:
        return llm.logits(PROMPT)


def keep_float(folder: Path, *float_layers: int) -> None:
    """Write the key into config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"float_layers_id": float_layers}))


@pytest.mark.parametrize("float_layers", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize("name", ["w8a16", "w4a8_dynamic"])
def test_logits_equal_hugging_face_with_the_other_layers_quantized(
    float_layers: list[int], name: str, tmp_path: Path
) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, seed=4, float_layers_id=float_layers)
    expected, all_quantized = (
        hf_oracle.logits_of(quantized_oracle.load(folder, name, None, kept), PROMPT)
        for kept in (float_layers, [])
    )
    tolerance = TOLERANCES[f"logits_{name}"]
    found = logits(folder, name)
    assert relative_error(found, expected) < tolerance
    assert relative_error(all_quantized, expected) > 2 * tolerance  # the difference can be seen


def test_the_key_does_nothing_without_a_quantization(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path)
    expected = logits(folder, None)
    keep_float(folder, 0)
    np.testing.assert_array_equal(logits(folder, None), expected)


def test_chatglm_has_the_key_too(tmp_path: Path) -> None:
    glm = hf_oracle.save_random_checkpoint(tmp_path / "glm", model_type="glm")
    chatglm = to_chatglm(glm, tmp_path / "chatglm")
    quantized = logits(chatglm, "w8a16")
    keep_float(glm, 0)
    keep_float(chatglm, 0)
    found = logits(chatglm, "w8a16")
    assert not np.array_equal(found, quantized)
    np.testing.assert_array_equal(found, logits(glm, "w8a16"))
    expected = hf_oracle.logits_of(quantized_oracle.load(glm, "w8a16", None, [0]), PROMPT)
    assert relative_error(found, expected) < TOLERANCES["logits_w8a16"]


def test_planned_bytes_are_the_real_ones(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, **FULL_TILES)
    sizes = []
    for float_layers in ([], [0], [0, 1]):
        keep_float(folder, *float_layers)
        with LLM(folder, quantization="w8a16", max_model_len=64) as llm:
            assert count_weight_bytes(llm.config, llm.settings) == llm.weights_bytes
            sizes.append(llm.weights_bytes)
    # A layer in float32: 3 bytes more a weight, without a scale for each of its rows.
    num_weights = 64 * (128 + 64 + 3 * 128)
    num_rows = 128 + 64 + 2 * 128 + 64
    assert np.diff(sizes).tolist() == [3 * num_weights - 4 * num_rows] * 2


def test_the_registered_classes_keep_them_float(tmp_path: Path) -> None:
    from mindformers import AutoConfig

    from mindformers_glm import Glm4ForCausalLM

    folder = str(hf_oracle.save_random_checkpoint(tmp_path, **FULL_TILES, float_layers_id=[1]))
    with LLM(folder, quantization="w8a16") as llm:
        expected = llm.weights_bytes
    network = Glm4ForCausalLM.from_pretrained(folder, quantization="w8a16", max_model_len=64)
    assert network.num_weight_bytes() == expected
    config = AutoConfig.from_pretrained(folder)
    config.quantization = "w8a16"
    assert Glm4ForCausalLM(config).num_weight_bytes() == expected


def test_each_choice_has_a_packed_cache_that_the_next_start_reads(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path)
    for float_layers in ([], [0]):
        keep_float(folder, *float_layers)
        expected = logits(folder, "w8a16")
        for _ in range(2):  # writes the cache, then reads it
            np.testing.assert_array_equal(logits(folder, "w8a16", "on"), expected)
        with LLM(folder, quantization="w8a16", packed_cache="on") as llm:
            assert llm.engine.runner.read_weight_bytes == 0
