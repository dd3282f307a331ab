"""A folder of PyTorch .bin files gives the same logits as one of safetensors."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Glm4ForCausalLM

from mindformers_glm import LLM
from mindformers_glm.serving.inspect.command import inspect_checkpoint
from mindformers_glm.weights.packed_cache import FOLDER_NAME
from tests.conftest import TOLERANCES, relative_error
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm

PROMPT = np.random.default_rng(0).integers(2, 515, 40).tolist()


def as_pytorch_folder(folder: Path, max_shard_size: str = "1GB") -> Path:
    """Replace the safetensors files by what Hugging Face writes without safe_serialization."""
    model = Glm4ForCausalLM.from_pretrained(folder, torch_dtype="auto")
    for path in folder.glob("model*"):
        path.unlink()
    model.save_pretrained(folder, safe_serialization=False, max_shard_size=max_shard_size)
    return folder


def logits(folder: Path) -> np.ndarray:
    with LLM(folder) as llm:
        return llm.logits(PROMPT)


def test_logits_are_those_of_the_safetensors_file(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, "float16")
    expected = logits(folder)
    as_pytorch_folder(folder)
    assert [path.name for path in folder.glob("*.bin")] == ["pytorch_model.bin"]
    np.testing.assert_array_equal(logits(folder), expected)


def test_shards_with_an_index_load_with_and_without_a_packed_cache(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, "bfloat16")
    expected = hf_oracle.logits(folder, PROMPT)
    as_pytorch_folder(folder, max_shard_size="100KB")
    num_shards = len(list(folder.glob("pytorch_model-*-of-*.bin")))
    assert num_shards > 1
    assert (folder / "pytorch_model.bin.index.json").exists()
    assert f"{num_shards} PyTorch shards" in inspect_checkpoint(folder)
    for _ in range(2):  # writes the packed cache, then reads it
        with LLM(folder, packed_cache="on") as llm:
            found = llm.logits(PROMPT)
        assert relative_error(found, expected) < TOLERANCES["logits_bfloat16"]
    assert len(list((folder / FOLDER_NAME).iterdir())) == 1


def test_the_format_before_1_6_loads_too(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    expected = hf_oracle.logits(tiny, PROMPT)
    assert relative_error(logits(folder), expected) < TOLERANCES["logits_float32"]


def test_a_tied_head_shares_its_storage(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, tie_word_embeddings=True)
    expected = hf_oracle.logits(folder, PROMPT)
    as_pytorch_folder(folder)
    assert "lm_head.weight" in torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert relative_error(logits(folder), expected) < TOLERANCES["logits_float32"]


def test_a_chatglm_folder_as_downloaded_gives_the_same_logits(tmp_path: Path) -> None:
    glm = hf_oracle.save_random_checkpoint(tmp_path / "glm", "float16", model_type="glm")
    folder = to_chatglm(glm, tmp_path / "chatglm")
    expected = logits(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # ChatGLM2 and ChatGLM3 store this buffer too.
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.rand(4).half()
    weight_map = {}
    for shard in range(3):
        part = {name: tensors[name] for name in list(tensors)[shard::3]}
        name = f"pytorch_model-{shard + 1:05d}-of-00003.bin"
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(logits(folder), expected)
