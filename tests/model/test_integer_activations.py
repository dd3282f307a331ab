"""Folders quantized with integer activations, against Hugging Face with a card's arithmetic."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu.footprint import count_weight_bytes
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.engine import memory_plan
from mindformers_glm.weights.packed_cache import FOLDER_NAME
from tests import quantized_folders as folders
from tests.conftest import relative_error
from tests.model import hf_oracle, stored_oracle

PROMPT = np.random.default_rng(1).integers(2, 500, 40).tolist()
_CASES = folders.WITH_ACTIVATIONS
# Nearly all rows are the same within the last digits of float32. Where the last bit of a norm lets
# an activation be rounded the other way, that row and those behind it change by a hundredth.
_OF_MOST_ROWS, _OF_ALL = 1e-6, 1e-2
_NUM_TOKENS = 12


def _write(tmp_path: Path, name: str, **sizes: int) -> Path:
    source = hf_oracle.save_random_checkpoint(tmp_path / "float", **sizes)
    folders.write(source, tmp_path / "quantized", _CASES[name])
    return tmp_path / "quantized"


def _expected(folder: Path, token_ids: list[int], num_prompt: int | None = None) -> np.ndarray:
    model = hf_oracle.load(folder.parent / "float")
    stored_oracle.put_into(model, folder, num_prompt=num_prompt)
    return hf_oracle.logits_of(model, token_ids)


@pytest.mark.parametrize("name", _CASES)
def test_logits_are_those_of_a_cards_arithmetic(name: str, tmp_path: Path) -> None:
    folder = _write(tmp_path, name)
    with LLM(folder, max_model_len=64) as llm:
        kept = dict(llm.settings.stored_schemes or ())
        assert all(kept[layer] is not None for layer in kept if layer != "output_layer")
        found = llm.logits(PROMPT)
    expected = _expected(folder, PROMPT)
    rows = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
    assert np.median(rows) < _OF_MOST_ROWS, rows
    assert relative_error(found, expected) < _OF_ALL


def test_generated_tokens_of_a_mixed_folder_have_the_given_scale(tmp_path: Path) -> None:
    folder = _write(tmp_path, "slim-w8a8-mix")
    params = SamplingParams(max_tokens=_NUM_TOKENS, logprobs=1, ignore_eos=True, do_sample=False)
    with LLM(folder, max_model_len=64) as llm:
        (output,) = llm.generate(PROMPT, params)
    tokens = list(output.token_ids)
    logits = _expected(folder, [*PROMPT, *tokens[:-1]], len(PROMPT))[len(PROMPT) - 1 :]
    as_prompt = _expected(folder, [*PROMPT, *tokens[:-1]])[len(PROMPT) - 1 :]
    expected, otherwise = (
        _logprobs(rows)[range(len(tokens)), tokens] for rows in (logits, as_prompt)
    )
    assert output.logprobs is not None
    found = [entry[token].logprob for entry, token in zip(output.logprobs, tokens, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-2)
    # The last row of the prompt is a prompt's; behind it the two differ by more.
    assert np.abs(np.array(found) - otherwise).max() > 5 * np.abs(np.array(found) - expected).max()


def _logprobs(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


Answer = tuple[list[int], list[float]]


def _answers(llm: LLM, prompts: list[list[int]]) -> list[Answer]:
    """Tokens and their log-probabilities."""
    params = SamplingParams(max_tokens=24, logprobs=1, ignore_eos=True, do_sample=False)
    found = []
    for output in llm.generate(prompts, params):
        assert output.logprobs is not None
        told = [next(iter(entry.values())).logprob for entry in output.logprobs]
        found.append((list(output.token_ids), told))
    return found


@pytest.mark.parametrize("how", ["chunks", "guesses", "preemption", "no prefix cache"])
def test_how_a_mixed_folder_is_run_does_not_change_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    folder = _write(tmp_path, "slim-w8a8-mix")
    prompts = [PROMPT[:13], PROMPT[5:30], [7, 8, 9, 7, 8, 9, 7, 8]]
    sizes = {"max_model_len": 64, "block_size": 16}
    with LLM(folder, **sizes, enable_prefix_caching=False) as llm:
        expected = [answer for prompt in prompts for answer in _answers(llm, [prompt])]
    changes = {
        "chunks": {"max_num_batched_tokens": 7},
        "guesses": {"prompt_lookup_num_tokens": 4},
        "preemption": {"enable_prefix_caching": False},
        "no prefix cache": {"enable_prefix_caching": False},
    }[how]
    if how == "preemption":
        monkeypatch.setattr(memory_plan, "plan_kv_blocks", lambda *_: 6)
    with LLM(folder, **sizes, **changes) as llm:
        assert _answers(llm, prompts) == expected
        assert _answers(llm, prompts) == expected  # from the prefix cache, where there is one
        assert bool(llm.engine.scheduler.num_preemptions) == (how == "preemption")


def test_an_answer_that_becomes_a_prompt_is_computed_as_one(tmp_path: Path) -> None:
    folder = _write(tmp_path, "slim-w8a8-mix")
    params = SamplingParams(max_tokens=30, ignore_eos=True, do_sample=False)
    with LLM(folder, max_model_len=128, block_size=16) as llm:
        (output,) = llm.generate([PROMPT], params)
        both = [*PROMPT, *output.token_ids]
        (behind,) = llm.generate([both], params)
    with LLM(folder, max_model_len=128, block_size=16, enable_prefix_caching=False) as llm:
        (expected,) = llm.generate([both], params)
    assert list(behind.token_ids) == list(expected.token_ids)


def test_matrices_that_round_activations_otherwise_run_as_float(tmp_path: Path) -> None:
    folder = _write(tmp_path, "slim-w8a8")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.k_proj.input_scale"] *= 2
    save_file(tensors, file)
    with LLM(folder, max_model_len=64) as llm:
        assert llm.settings.scheme_of("decoder.layers.0.self_attention.linear_qkv") is not None
        assert llm.settings.scheme_of("decoder.layers.1.self_attention.linear_qkv") is None


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0])
def test_a_scale_that_is_none_is_one_sentence(tmp_path: Path, value: float) -> None:
    folder = _write(tmp_path, "slim-w8a8")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.0.mlp.down_proj.input_scale"][:] = value
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"down_proj\.input_scale holds a scale") as caught:
        LLM(folder, max_model_len=64)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("name", ["slim-w8a8", "slim-w8a8-mix", "slim-w4a8-dynamic"])
def test_planned_bytes_are_the_real_ones_and_the_cache_keeps_all(name: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 512, "head_dim": 32}
    folder = _write(tmp_path, name, **sizes)
    found = []
    for _ in range(2):
        with LLM(folder, max_model_len=64, packed_cache="on") as llm:
            assert count_weight_bytes(llm.config, llm.settings) == llm.weights_bytes
            found.append(llm.logits(PROMPT))
    assert len(list((folder / FOLDER_NAME).iterdir())) == 1
    np.testing.assert_array_equal(*found)
