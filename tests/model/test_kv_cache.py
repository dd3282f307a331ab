"""A KV cache of int8: what it computes, and that batches, chunks and blocks change nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu.footprint import count_weight_bytes
from mindformers_glm.core.errors import CheckpointError, ConfigError, UnsupportedError
from mindformers_glm.weights.packed_cache import FOLDER_NAME
from tests import quantized_folders as folders
from tests.conftest import MINI, relative_error
from tests.model import hf_oracle, kv_oracle, stored_oracle
from tests.model.chatglm_layout import to_chatglm, to_glm
from tests.model.test_quantized_fixtures import _with_rope_theta, lay_out, tool_logits

# Queries have 16 bits and probabilities 8, which the oracles do not round; a key may fall to
# another integer for the last bit of a float sum.
TOLERANCE = 1e-2
PROMPT = list(range(5, 45))
_GREEDY = SamplingParams(do_sample=False, max_new_tokens=12, ignore_eos=True)


def _logits(folder: Path, **settings: Any) -> np.ndarray:
    with LLM(folder, max_model_len=128, params_dtype="float32", **settings) as llm:
        return llm.logits(PROMPT)


@pytest.fixture(scope="module")
def dialects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dialects")
    glm = hf_oracle.save_random_checkpoint(root / "glm", model_type="glm")
    return {
        "glm4": hf_oracle.save_random_checkpoint(root / "glm4"),
        "glm": glm,
        "chatglm": to_chatglm(glm, root / "chatglm"),
    }


def test_a_scale_for_each_head_and_token(isa: str, tiny: Path) -> None:
    expected = kv_oracle.logits_of(hf_oracle.load(tiny), PROMPT)
    found = _logits(tiny, kv_cache_dtype="int8")
    assert relative_error(found, expected) < TOLERANCE
    # Rounding shows: what is compared is not the float cache.
    assert relative_error(_logits(tiny), expected) > TOLERANCE / 5


@pytest.mark.parametrize("dialect", ["glm4", "glm", "chatglm"])
@pytest.mark.parametrize("is_symmetric", [True, False], ids=["symmetric", "with offsets"])
def test_scales_of_the_checkpoint(
    dialects: dict[str, Path], dialect: str, is_symmetric: bool, tmp_path: Path
) -> None:
    folder = folders.write_kv_scales(dialects[dialect], tmp_path / "c8", is_symmetric=is_symmetric)
    as_glm = dialects["glm"] if dialect == "chatglm" else dialects[dialect]
    model = hf_oracle.load(as_glm)
    stored_oracle.put_into(model, folder)
    expected = kv_oracle.logits_of(model, PROMPT, kv_oracle.read_channels(folder))
    assert relative_error(_logits(folder), expected) < TOLERANCE
    # Scales of others would be seen.
    assert relative_error(kv_oracle.logits_of(model, PROMPT), expected) > TOLERANCE


FIXTURES = ["glm_w8a8c8", "chatglm_w8a8c8"]


def _load_fixture(name: str, fixtures: Path, tmp_path: Path, **how: Any) -> tuple[Any, Path]:
    folder = lay_out(fixtures, name, tmp_path / "quantized")
    source = fixtures / f"{name.split('_')[0]}_float"
    if name.startswith("chatglm"):
        source = to_glm(_with_rope_theta(source, tmp_path), tmp_path / "as_glm")
    model = hf_oracle.load(source)
    stored_oracle.put_into(model, folder, **how)
    return model, folder


@pytest.mark.parametrize("name", FIXTURES)
def test_the_tools_logits_are_those_of_a_float_cache(
    name: str, shared_fixtures: Path, tmp_path: Path
) -> None:
    """msModelSlim's simulation rounds activations and no keys or values."""
    fixtures = shared_fixtures / "msmodelslim"
    model, _ = _load_fixture(name, fixtures, tmp_path, is_simulated=True)
    prompt, expected = tool_logits(fixtures, name)
    found = hf_oracle.logits_of(model, prompt)
    assert relative_error(found[:3], expected[:3]) < 1e-4
    assert relative_error(found, expected) < 3e-2  # see SENSITIVE in test_quantized_fixtures.py


@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures_run_with_their_scales_and_without(
    name: str, shared_fixtures: Path, tmp_path: Path
) -> None:
    fixtures = shared_fixtures / "msmodelslim"
    model, folder = _load_fixture(name, fixtures, tmp_path)
    prompt, _ = tool_logits(fixtures, name)
    sizes = {"params_dtype": "float32", "max_model_len": 64}
    with LLM(folder, kv_cache_dtype="float32", **sizes) as llm:
        assert relative_error(llm.logits(prompt), hf_oracle.logits_of(model, prompt)) < 1e-3
    expected = kv_oracle.logits_of(model, prompt, kv_oracle.read_channels(folder))
    with LLM(folder, **sizes) as llm:
        assert llm.settings.uses_kv_scales
        found = llm.logits(prompt)
    assert relative_error(found[0], expected[0]) < 1e-4
    # Probabilities of 8 bits would make static activations fall to the next integer, which these
    # models answer by a few hundredths.
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("has_scales", [False, True], ids=["tokens", "channels"])
def test_batches_chunks_blocks_and_the_prefix_cache_change_no_bit(
    tiny: Path, tmp_path: Path, has_scales: bool
) -> None:
    folder = folders.write_kv_scales(tiny, tmp_path / "c8") if has_scales else tiny
    prompts = [PROMPT[:n] for n in (40, 1, 17, 33, 40)]

    def run(**settings: Any) -> tuple[list[list[int]], np.ndarray]:
        sizes = {"max_model_len": 64, "block_size": 16, "kv_cache_dtype": "int8"}
        with LLM(folder, params_dtype="float32", **(sizes | settings)) as llm:
            outputs = llm.generate(prompts, _GREEDY)
            return [output.token_ids for output in outputs], llm.logits(PROMPT)

    tokens, logits = run(max_num_seqs=1, enable_prefix_caching=False, prompt_lookup_num_tokens=0)
    for settings in (
        {},
        {"max_num_batched_tokens": 7},
        {"block_size": 3},
        {"block_size": 64, "max_num_seqs": 2},
    ):
        found, found_logits = run(**settings)
        assert found == tokens, settings
        np.testing.assert_array_equal(found_logits, logits)


def test_the_cache_takes_half_of_float16s_bytes(tiny: Path) -> None:
    sizes = {}
    for dtype in ("float16", "int8"):
        with LLM(tiny, max_model_len=64, kv_cache_dtype=dtype) as llm:
            runner = llm.engine.runner
            caches = [
                cache.asnumpy().nbytes
                for layer in runner.network.decoder.layers
                for cache in layer.self_attention.core_attention.caches
            ]
            sizes[dtype] = runner.kv_block_bytes
            assert sum(caches) == runner.kv_block_bytes * llm.engine.config.num_blocks
    assert sizes["int8"] / sizes["float16"] == (16 + 4) / 32  # heads of 16, a scale of 4 bytes


def test_another_type_may_be_asked_for(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    folder = folders.write_kv_scales(tiny, tmp_path / "c8")
    model = hf_oracle.load(tiny)
    stored_oracle.put_into(model, folder)
    expected = hf_oracle.logits_of(model, PROMPT)
    for dtype, tolerance in {"float32": 1e-4, "fp16": 1e-3, "bfloat16": 1e-2}.items():
        assert relative_error(_logits(folder, kv_cache_dtype=dtype), expected) < tolerance
    told = capsys.readouterr().err
    assert "(scales of an int8 KV cache)" in told


def test_the_packed_cache_keeps_scales(tiny: Path, tmp_path: Path) -> None:
    folder = folders.write_kv_scales(tiny, tmp_path / "c8")
    expected = _logits(folder, packed_cache="on")
    np.testing.assert_array_equal(_logits(folder, packed_cache="on"), expected)
    assert len(list((folder / FOLDER_NAME).iterdir())) == 1
    _logits(folder, packed_cache="on", kv_cache_dtype="float16")  # has none: another file
    np.testing.assert_array_equal(_logits(folder, packed_cache="on"), expected)


def test_planned_bytes_are_the_real_ones(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 512}
    source = hf_oracle.save_random_checkpoint(tmp_path / "float", head_dim=32, **sizes)
    folder = folders.write_kv_scales(source, tmp_path / "c8")
    with LLM(folder, max_model_len=64) as llm:
        assert count_weight_bytes(llm.config, llm.settings) == llm.weights_bytes


def test_unknown_types_are_one_sentence(tiny: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"kv_cache_dtype must be auto, float16.*got 'fp8'"
    ) as told:
        LLM(tiny, kv_cache_dtype="fp8")
    assert str(told.value).count(". ") == 0


def test_heads_that_are_too_long_are_one_sentence(tmp_path: Path) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "long", head_dim=528)
    with pytest.raises(UnsupportedError, match="at most 512 columns, and head_dim is 528"):
        LLM(source, kv_cache_dtype="int8")


_NO_SCALE = "holds a scale that is not"
_NO_OFFSET = "expected a whole number from -128 to 127"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("v_proj.kv_cache_scale", value, _NO_SCALE) for value in (0.0, np.nan, -1.0)),
        *(("k_proj.kv_cache_offset", value, _NO_OFFSET) for value in (0.5, np.nan, 128.0, np.inf)),
    ],
)
def test_scales_and_offsets_that_cannot_be_are_one_sentence(
    tiny: Path, tmp_path: Path, name: str, value: float, words: str
) -> None:
    folder = folders.write_kv_scales(tiny, tmp_path / "c8")
    (file,) = folder.glob("*.safetensors")
    whole_name = f"model.layers.1.self_attn.{name}"
    tensors = load_file(file)
    tensors[whole_name][3] = value
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=f"{whole_name} .*{words}") as told:
        LLM(folder)
    assert str(told.value).count(". ") == 0


@pytest.mark.weights
def test_held_out_answers_are_those_of_a_float_cache(
    questions: list[dict[str, Any]], prompts: list[list[int]]
) -> None:
    params = SamplingParams(do_sample=False, max_new_tokens=160)
    answers = {}
    for dtype in ("auto", "int8"):
        with LLM(MINI, max_model_len=512, kv_cache_dtype=dtype) as llm:
            answers[dtype] = [output.text for output in llm.generate(prompts, params)]
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    assert same >= 0.98 * len(questions), f"{same} of {len(questions)}"
