"""On-load quantization against Hugging Face with the reference's dequantized weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu.footprint import count_weight_bytes
from mindformers_glm.core.quantization_scheme import SCHEMES
from mindformers_glm.weights.packed_cache import FOLDER_NAME
from tests.conftest import MINI, TOLERANCES, relative_error
from tests.model import hf_oracle, quantized_oracle

# Scheme and group size; a group of 128 is more than the whole row of most matrices here.
CASES = [
    ("w8a16", None),
    ("w8a8_dynamic", None),
    ("w4a16", None),
    ("w4a16", 32),
    ("w4a16", 64),
    ("w4a8_dynamic", None),
    ("w4a8_dynamic", 32),
]
# Less than a group, groups that end inside a row, rows that are no whole tiles.
SHAPES: list[dict[str, Any]] = [
    {},
    {"hidden_size": 72, "intermediate_size": 100, "vocab_size": 777, "tie_word_embeddings": True},
    {"hidden_size": 256, "intermediate_size": 136, "attention_bias": False, "head_dim": 64},
]
_NUM_TOKENS = 24


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(shape) or "tiny")
def test_logits_and_greedy_tokens_equal_hugging_face_with_dequantized_weights(
    shape: dict[str, Any], case: tuple[str, int | None], tmp_path: Path
) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, seed=3, **shape)
    prompt = np.random.default_rng(1).integers(2, 500, 40).tolist()
    name, group_size = case
    model = quantized_oracle.load(folder, name, group_size)
    with LLM(folder, quantization=name, quantization_group_size=group_size) as llm:
        found = llm.logits(prompt)
        params = SamplingParams(max_new_tokens=_NUM_TOKENS, do_sample=False, ignore_eos=True)
        tokens = list(llm.generate([prompt], params)[0].token_ids)
    tolerance = TOLERANCES[f"logits_{name}"]
    assert relative_error(found, hf_oracle.logits_of(model, prompt)) < tolerance
    expected = hf_oracle.greedy_tokens_of(model, prompt, _NUM_TOKENS)
    hf_oracle.assert_equal_or_close_call(model, prompt, tokens, expected, tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_short_float_checkpoint_can_be_quantized(dtype: str, tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, dtype)
    prompt = np.random.default_rng(2).integers(2, 500, 33).tolist()
    model = quantized_oracle.load(folder, "w8a16")
    with LLM(folder, quantization="w8a16") as llm:
        found = llm.logits(prompt)
    # The KV cache and the rotary tables are still short.
    tolerance = TOLERANCES[f"logits_{dtype}"]
    assert relative_error(found, hf_oracle.logits_of(model, prompt)) < tolerance


def test_from_pretrained_quantizes(tmp_path: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    folder = hf_oracle.save_random_checkpoint(tmp_path)
    model = quantized_oracle.load(folder, "w4a16", 32)
    network = Glm4ForCausalLM.from_pretrained(
        str(folder), quantization="w4a16", quantization_group_size=32, max_model_len=64
    )
    prompt = [5, 6, 7]
    found = network.generate(prompt, do_sample=False, max_new_tokens=8, ignore_eos=True)[0]
    assert found.tolist() == prompt + hf_oracle.greedy_tokens_of(model, prompt, 8)


def test_each_scheme_has_a_packed_cache_of_its_own(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path)

    def logits(name: str | None, packed_cache: str) -> np.ndarray:
        with LLM(folder, quantization=name, packed_cache=packed_cache) as llm:
            return llm.logits([5, 6, 7])

    names = (None, "w8a16", "w4a16", "w4a8_dynamic")
    expected = [logits(name, "off") for name in names]
    written = []
    for _ in range(2):  # writes the caches, then reads them
        for name, values in zip(names, expected, strict=True):
            np.testing.assert_array_equal(logits(name, "on"), values)
        files = (folder / FOLDER_NAME).iterdir()
        written.append({file.name: file.stat().st_mtime_ns for file in files})
    assert len(written[0]) == len(names)
    assert written[1] == written[0]


@pytest.mark.weights
@pytest.mark.parametrize("name", [None, *SCHEMES])
def test_planned_bytes_are_the_real_ones(name: str | None) -> None:
    # The sizes of glm4-mini are multiples of tiles and groups: nothing is padded.
    with LLM(MINI, quantization=name, max_model_len=64) as llm:
        assert count_weight_bytes(llm.config, llm.settings) == llm.weights_bytes


@pytest.mark.weights
@pytest.mark.parametrize("name", SCHEMES)
def test_glm4_mini_keeps_its_score(
    name: str, questions: list[dict[str, Any]], prompts: list[list[int]], float_score: int
) -> None:
    score = _score(questions, prompts, quantization=name)
    assert score >= float_score, (score, float_score)


@pytest.fixture(scope="module")
def float_score(questions: list[dict[str, Any]], prompts: list[list[int]]) -> int:
    return _score(questions, prompts)


def _score(questions: list[dict[str, Any]], prompts: list[list[int]], **settings: Any) -> int:
    """Right answers to the held-out questions; what is not quantized is float32."""
    with LLM(MINI, max_model_len=512, params_dtype="float32", **settings) as llm:
        outputs = llm.generate(prompts, SamplingParams(do_sample=False, max_new_tokens=160))
    pairs = zip(outputs, questions, strict=True)
    return sum(output.text.strip() == question["answer"] for output, question in pairs)
