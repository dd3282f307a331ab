"""Logits and greedy tokens equal Hugging Face's on random tiny checkpoints of many shapes."""

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm import LLM, SamplingParams
from tests.conftest import TOLERANCES, relative_error
from tests.model import hf_oracle

_NUM_TOKENS = 32
# Prompt lengths around the row buckets (1, 8, 32, 128) and the block size.
_PROMPT_LENGTHS = (1, 7, 8, 9, 31, 32, 33, 64, 65, 129)


def _shapes() -> list[dict[str, Any]]:
    """24 configs in which every value of every choice occurs with several of the others."""
    heads = ((4, 1), (4, 2), (8, 4), (8, 8), (6, 2), (16, 2))
    shapes = []
    choices = zip(
        cycle(heads),
        cycle((16, 32, 64, 128, 16)),
        cycle((0.5, 1.0, 0.5)),
        cycle((True, False)),
        cycle((515, 512, 777, 1001)),
        cycle((1, 2, 3)),
        cycle((False, False, False, True)),
        cycle((96, 136, 64, 100, 250)),
        strict=False,
    )
    for (q, kv), dim, rotary, bias, vocab, layers, tied, ffn in islice(choices, 24):
        shapes.append(
            {
                "num_attention_heads": q,
                "num_key_value_heads": kv,
                "head_dim": dim,
                "partial_rotary_factor": rotary,
                "attention_bias": bias,
                "vocab_size": vocab,
                "num_hidden_layers": layers,
                "tie_word_embeddings": tied,
                "intermediate_size": ffn,
                "hidden_size": 72 if ffn == 100 else 64,
            }
        )
    return shapes


def _name(shape: dict[str, Any]) -> str:
    return "-".join(str(value) for value in shape.values())


@pytest.mark.parametrize("shape", _shapes(), ids=_name)
def test_float32_logits_and_greedy_tokens_equal_hugging_face(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    seed = _shapes().index(shape)
    folder = hf_oracle.save_random_checkpoint(tmp_path, seed=seed, **shape)
    prompt = _prompt(seed, shape["vocab_size"])
    with LLM(str(folder), params_dtype="float32") as llm:
        found = llm.logits(prompt)
        tokens = _greedy(llm, prompt)
    assert relative_error(found, hf_oracle.logits(folder, prompt)) < TOLERANCES["logits_float32"]
    assert tokens == hf_oracle.greedy_tokens(folder, prompt, _NUM_TOKENS)


@pytest.mark.parametrize("shape", _shapes()[:20], ids=_name)
def test_glm_without_sandwich_norms_equals_hugging_face(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    seed = 100 + _shapes().index(shape)
    folder = hf_oracle.save_random_checkpoint(tmp_path, seed=seed, model_type="glm", **shape)
    prompt = _prompt(seed, shape["vocab_size"])
    with LLM(str(folder), params_dtype="float32") as llm:
        found = llm.logits(prompt)
        tokens = _greedy(llm, prompt)
    assert relative_error(found, hf_oracle.logits(folder, prompt)) < TOLERANCES["logits_float32"]
    assert tokens == hf_oracle.greedy_tokens(folder, prompt, _NUM_TOKENS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_float_glm_is_close_to_float32_on_the_same_weights(
    dtype: str, tmp_path: Path
) -> None:
    folder = hf_oracle.save_random_checkpoint(
        tmp_path, dtype, model_type="glm", num_hidden_layers=3
    )
    prompt = _prompt(9, 515)
    with LLM(str(folder)) as llm:
        found = llm.logits(prompt)
    assert relative_error(found, hf_oracle.logits(folder, prompt)) < TOLERANCES[f"logits_{dtype}"]


@pytest.mark.parametrize(("num_layers", "num_graphs"), [(3, 1), (4, 2), (7, 3)])
def test_a_network_of_several_graphs_equals_hugging_face(
    num_layers: int, num_graphs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mindformers_glm.backends.cpu.graphs.MAX_NODES_PER_GRAPH", 10)  # 3 layers
    folder = hf_oracle.save_random_checkpoint(tmp_path, num_hidden_layers=num_layers)
    prompt = _prompt(3, 515)
    with LLM(str(folder), params_dtype="float32") as llm:
        assert len(llm.engine.runner._graphs.hidden_states) == num_graphs
        found = llm.logits(prompt)
        tokens = _greedy(llm, prompt)
    assert relative_error(found, hf_oracle.logits(folder, prompt)) < TOLERANCES["logits_float32"]
    assert tokens == hf_oracle.greedy_tokens(folder, prompt, _NUM_TOKENS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", _shapes()[::3], ids=_name)
def test_short_float_logits_are_close_to_float32_on_the_same_weights(
    shape: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    seed = _shapes().index(shape)
    folder = hf_oracle.save_random_checkpoint(tmp_path, dtype, seed=seed, **shape)
    prompt = _prompt(seed, shape["vocab_size"])
    tolerance = TOLERANCES[f"logits_{dtype}"]
    reference = hf_oracle.logits(folder, prompt)
    with LLM(str(folder)) as llm:
        assert relative_error(llm.logits(prompt), reference) < tolerance
        tokens = _greedy(llm, prompt)
    expected = hf_oracle.greedy_tokens(folder, prompt, _NUM_TOKENS)
    model = hf_oracle.load(folder)
    hf_oracle.assert_equal_or_close_call(model, prompt, tokens, expected, tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_weights_with_float32_products_equal_hugging_face(dtype: str, tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, dtype)
    prompt = _prompt(0, 515)
    with LLM(str(folder), compute_dtype="float32") as llm:
        found = llm.logits(prompt)
    assert relative_error(found, hf_oracle.logits(folder, prompt)) < TOLERANCES["logits_float32"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_right_on_each_instruction_set(isa: str, dtype: str, tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, dtype, head_dim=64, num_hidden_layers=3)
    prompt = _prompt(9, 515)
    with LLM(str(folder)) as llm:
        found = llm.logits(prompt)
    assert relative_error(found, hf_oracle.logits(folder, prompt)) < TOLERANCES[f"logits_{dtype}"]


def test_a_float32_checkpoint_can_run_in_bfloat16(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, "float32")
    rounded = hf_oracle.save_random_checkpoint(tmp_path / "rounded", "bfloat16")
    prompt = _prompt(1, 515)
    with LLM(str(folder), params_dtype="bfloat16") as llm:
        found = llm.logits(prompt)
    # Norm weights and biases stay float32, so the rounded checkpoint is close and not equal.
    assert relative_error(found, hf_oracle.logits(rounded, prompt)) < TOLERANCES["logits_bfloat16"]


def _prompt(seed: int, vocab_size: int) -> list[int]:
    length = _PROMPT_LENGTHS[seed % len(_PROMPT_LENGTHS)]
    return np.random.default_rng(seed).integers(2, vocab_size, length).tolist()


def _greedy(llm: LLM, prompt: list[int]) -> list[int]:
    params = SamplingParams(max_new_tokens=_NUM_TOKENS, do_sample=False, ignore_eos=True)
    (output,) = llm.generate([prompt], params)
    return list(output.token_ids)
