"""ChatGLM's layout: the official code's numbers, and the same network as Hugging Face's layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends import select_backend
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.engine.batch import build_slot_mapping
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.conftest import TOLERANCES, relative_error
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm, to_glm

# The network of golden/chatglm_glm2_one_layer.npz; its real vocabulary has 5 tokens.
_GOLDEN = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "hidden_size": 32,
    "num_attention_heads": 8,
    "multi_query_group_num": 2,
    "kv_channels": 4,
    "num_layers": 1,
    "ffn_hidden_size": 48,
    "padded_vocab_size": 32,
    "seq_length": 64,
    "layernorm_epsilon": 1e-5,
    "torch_dtype": "float32",
}
_PROMPT = np.random.default_rng(5).integers(2, 500, 37).tolist()


@pytest.fixture(scope="module")
def golden(shared_fixtures: Path) -> dict[str, np.ndarray]:
    """Weights, token ids and hidden states of the official code."""
    return dict(np.load(shared_fixtures / "golden" / "chatglm_glm2_one_layer.npz"))


def test_hidden_states_are_the_official_codes(
    golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    tensors = {name: array for name, array in golden.items() if name.startswith("transformer.")}
    table = "transformer.embedding.word_embeddings.weight"
    # An output layer that changes nothing: the logits are the hidden states.
    tensors[table] = np.pad(tensors[table], ((0, 27), (0, 0)))
    tensors["transformer.output_layer.weight"] = np.eye(32, dtype=np.float32)
    (tmp_path / "config.json").write_text(json.dumps(_GOLDEN))
    save_file(tensors, tmp_path / "model.safetensors")

    settings = RunnerSettings.with_defaults("float32", 64, block_size=2)
    backend = select_backend("CPU")
    backend.connect(settings.tensor_parallel, DeviceSettings())
    with Checkpoint.open(tmp_path) as checkpoint:
        runner = backend.create_runner(GlmConfig.from_hf(tmp_path), checkpoint, settings)
    runner.allocate_kv_cache(4)
    blocks, length = [2, 0, 3], 0
    for step in ("step1", "step2", "step3"):  # a prefill of three tokens, two decode steps
        token_ids = golden[f"expected.{step}.input_ids"]
        end = length + len(token_ids)
        found = runner.execute(
            ModelBatch(
                token_ids=token_ids,
                positions=np.arange(length, end, dtype=np.int32),
                slot_mapping=build_slot_mapping(blocks, length, end, 2),
                query_start=np.int32([0, len(token_ids)]),
                seq_lens=np.int32([end]),
                block_tables=[blocks],
                sample_rows=np.arange(len(token_ids), dtype=np.int32),
                is_prompt=np.ones(len(token_ids), np.int32),
            )
        )
        expected = golden[f"expected.{step}.hidden_states"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        length = end


_SHAPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("float32", {}),
    ("float16", {}),
    (
        "bfloat16",
        {"num_key_value_heads": 1, "head_dim": 32, "attention_bias": False, "rope_theta": 5e6},
    ),
    ("bfloat16", {"num_key_value_heads": 4, "num_hidden_layers": 3, "intermediate_size": 100}),
    ("bfloat16", {"hidden_size": 72, "vocab_size": 777, "head_dim": 32}),
)


@pytest.mark.parametrize(("dtype", "shape"), _SHAPES, ids=str)
def test_both_layouts_of_the_same_weights_give_the_same_bits(
    dtype: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    glm = hf_oracle.save_random_checkpoint(tmp_path / "glm", dtype, model_type="glm", **shape)
    chatglm = to_chatglm(glm, tmp_path / "chatglm")
    answers = []
    for folder in (glm, chatglm):
        with LLM(str(folder)) as llm:
            greedy = SamplingParams(max_new_tokens=8, do_sample=False, ignore_eos=True)
            answers.append((llm.logits(_PROMPT), llm.generate([_PROMPT], greedy)[0].token_ids))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    assert list(answers[0][1]) == list(answers[1][1])


@pytest.mark.parametrize("quantization", ["w8a16", "w4a16"])
def test_quantization_while_loading_is_the_same_in_both_layouts(
    quantization: str, tmp_path: Path
) -> None:
    shape = {"hidden_size": 128, "head_dim": 32}
    glm = hf_oracle.save_random_checkpoint(tmp_path / "glm", model_type="glm", **shape)
    found = []
    for folder in (glm, to_chatglm(glm, tmp_path / "chatglm")):
        with LLM(str(folder), quantization=quantization, packed_cache="off") as llm:
            found.append(llm.logits(_PROMPT))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", ["chatglm_float", "glm_float", "glm4_float"])
def test_source_checkpoints_of_msmodelslim_equal_hugging_face(
    name: str, shared_fixtures: Path, tmp_path: Path
) -> None:
    source = shared_fixtures / "msmodelslim" / name
    folder = tmp_path / name
    folder.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
    hf_oracle.save_byte_tokenizer(folder)
    prompt = np.load(source.parent / "calib_ids.npy")[0].tolist()
    with LLM(str(folder), compute_dtype="float32") as llm:
        found = llm.logits(prompt)
    oracle = to_glm(folder, tmp_path / "glm") if name == "chatglm_float" else folder
    expected = hf_oracle.logits(oracle, prompt)
    assert relative_error(found, expected) < TOLERANCES["logits_float32"]
