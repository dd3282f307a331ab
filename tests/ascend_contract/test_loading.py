"""Every Parameter of upstream's network holds the bytes that Megatron's rules give a rank.

The oracle cuts Hugging Face's tensors with NumPy alone; a rank is set in this process.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mindformers_glm.backends.ascend.runner import AscendModelRunner
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.share_writer import write_shares
from tests.ascend_contract.ranks import as_rank
from tests.model import hf_oracle
from tests.model.dialects import save_dialect

HEADS, GROUPS, HEAD_DIM, HIDDEN, FFN = 8, 2, 16, 64, 1096
# Equal parts of 8 ranks begin in the middle of a group of 128 inner columns.
CHANGES = {"num_attention_heads": HEADS, "intermediate_size": FFN, "vocab_size": 520}


@pytest.fixture(scope="module", params=["glm4", "glm", "chatglm"])
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A bfloat16 checkpoint in a dialect's layout, and as Hugging Face has it."""
    root = tmp_path_factory.mktemp(request.param)
    return save_dialect(root, request.param, "bfloat16", **CHANGES)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_each_rank_has_its_slices_byte_for_byte(
    size: int, folders: tuple[Path, Path], calls: Counter[str]
) -> None:
    folder, source = folders
    tensors = read_bits(source)
    for rank in range(size):
        expected = slices(tensors, size, rank)
        found = load(folder, "bfloat16", size, rank)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, f"{name} of rank {rank}")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_another_type_is_the_one_that_torch_makes(
    dtype: str, calls: Counter[str], tmp_path: Path
) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, "bfloat16", **CHANGES)
    found = load(folder, dtype, 2, 1)
    for name, bits in slices(read_bits(folder), 2, 1).items():
        if bits.dtype == np.uint16:  # norms are float32 whatever the type
            values = torch.from_numpy(bits).view(torch.bfloat16).to(getattr(torch, dtype)).numpy()
            np.testing.assert_array_equal(found[name].view(np.uint8), values.view(np.uint8), name)


def read_bits(folder: Path) -> dict[str, np.ndarray]:
    """Hugging Face's tensors of two bytes a number."""
    return {
        name: tensor.view(torch.uint16).numpy()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


def test_files_cut_beforehand_hold_the_same(calls: Counter[str], tmp_path: Path) -> None:
    changes = CHANGES | {"intermediate_size": 512}  # 2 groups for each of 2 ranks
    folder = hf_oracle.save_random_checkpoint(tmp_path / "whole", "bfloat16", **changes)
    write_shares(folder, tmp_path / "cut", 2)
    for rank in range(2):
        expected, found = (load(tmp_path / name, "bfloat16", 2, rank) for name in ("whole", "cut"))
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, name)


def test_files_cut_elsewhere_are_refused_before_weights_are_read(
    calls: Counter[str], tmp_path: Path
) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path / "whole", **CHANGES)
    write_shares(folder, tmp_path / "cut", 2)
    with pytest.raises(CheckpointError, match=r"intermediate_size=1096 in 2 equal parts"):
        load(tmp_path / "cut", "float32", 2, 0)


def load(folder: Path, dtype: str, size: int, rank: int) -> dict[str, np.ndarray]:
    """The Parameters of a rank's network, as bits where NumPy lacks the type."""
    with as_rank(size, rank), Checkpoint.open(folder, TensorParallel(size, rank)) as checkpoint:
        settings = RunnerSettings.for_config(
            config := GlmConfig.from_hf(folder),
            dtype,
            params_dtype=dtype,
            compute_dtype=dtype,
            max_model_len=32,
            model_parallel=size,
            model_parallel_rank=rank,
        )
        runner = AscendModelRunner(config, checkpoint, settings)
        parameters = runner.network.model.get_params_dict()
    found = {name: parameter.asnumpy() for name, parameter in parameters.items()}
    return {
        name: array if array.dtype == np.float32 else array.view(np.uint16)
        for name, array in found.items()
    }


def slices(tensors: dict[str, np.ndarray], size: int, rank: int) -> dict[str, np.ndarray]:
    """What a rank has of Hugging Face's tensors, by upstream's names."""

    def part(array: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.split(array, size, axis)[rank]

    def key_value(array: np.ndarray) -> np.ndarray:
        heads = np.repeat(array.reshape(GROUPS, HEAD_DIM, -1), max(size // GROUPS, 1), axis=0)
        own = part(heads)
        return own.reshape(-1, *array.shape[1:])

    def qkv(prefix: str, kind: str) -> np.ndarray:
        query, key, value = (tensors[f"{prefix}self_attn.{one}_proj.{kind}"] for one in "qkv")
        return np.concatenate([part(query), key_value(key), key_value(value)])

    found = {
        "embedding.word_embeddings.weight": part(tensors["model.embed_tokens.weight"]),
        "decoder.final_layernorm.weight": widen(tensors["model.norm.weight"]),
        "output_layer.weight": part(tensors["lm_head.weight"]),
    }
    has_sandwich = "model.layers.0.post_mlp_layernorm.weight" in tensors
    norms = {
        "input_layernorm": "input_layernorm",
        "pre_mlp_layernorm": "post_attention_layernorm",
    }
    if has_sandwich:
        norms["post_self_attn_layernorm"] = "post_self_attn_layernorm"
        norms["post_mlp_layernorm"] = "post_mlp_layernorm"
    for layer in range(2):
        theirs, ours = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        gate, up = np.split(tensors[f"{theirs}mlp.gate_up_proj.weight"], 2)
        found |= {
            f"{ours}{to}.weight": widen(tensors[f"{theirs}{name}.weight"])
            for to, name in norms.items()
        }
        found |= {
            f"{ours}self_attention.linear_qkv.{kind}": qkv(theirs, kind)
            for kind in ("weight", "bias")
        }
        found[f"{ours}self_attention.linear_proj.weight"] = part(
            tensors[f"{theirs}self_attn.o_proj.weight"], 1
        )
        found[f"{ours}mlp.linear_fc1.weight"] = np.concatenate([part(gate), part(up)])
        found[f"{ours}mlp.linear_fc2.weight"] = part(tensors[f"{theirs}mlp.down_proj.weight"], 1)
    return found


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, in which upstream keeps the norms whatever the type of the rest."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
