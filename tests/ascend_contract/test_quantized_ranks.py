"""What each rank holds of a quantized checkpoint, and that the ranks' products make the whole."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mindspore import Tensor
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from mindformers_glm.backends.ascend.integer_methods import IntegerMethod
from mindformers_glm.backends.ascend.runner import AscendModelRunner
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from tests import quantized_folders as folders
from tests.ascend_contract import split_worker
from tests.ascend_contract.ranks import as_rank
from tests.conftest import relative_error
from tests.model import hf_oracle, stored_oracle
from tests.tp.launched import Job

# 2 groups of KV heads: of 4 and 8 ranks several hold a copy of one.
GROUPS, HEAD_DIM = 2, 16
CHANGES = {"num_attention_heads": 8, "intermediate_size": 1096, "vocab_size": 520}
LAYER = "decoder.layers.1."
ROW_PARALLEL = ("self_attention.linear_proj", "mlp.linear_fc2")
SIZES = [1, 2, 4, 8]


CASES = folders.WEIGHT_ONLY | folders.WITH_ACTIVATIONS
NAMES = ("slim-w8a8-int64", "slim-w8a8-dynamic", "ct-w8a8-static", "slim-w8a16-asymmetric")


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    source = hf_oracle.save_random_checkpoint(root / "hf", attention_bias=True, **CHANGES)
    folders.write(source, root / "quantized", CASES[request.param])
    return root / "quantized"


def open_rank(folder: Path, dtype: str, size: int, rank: int) -> AscendModelRunner:
    with (
        as_rank(size, rank),
        Checkpoint.open(folder, TensorParallel(size, rank), find_format) as checkpoint,
    ):
        settings = RunnerSettings.for_config(
            config := GlmConfig.from_hf(folder),
            dtype,
            params_dtype=dtype,
            compute_dtype=dtype,
            max_model_len=32,
            model_parallel=size,
            model_parallel_rank=rank,
        )
        return AscendModelRunner(config, checkpoint, settings)


class Stored:
    """The second layer's tensors as the file has them, and what a rank takes of them."""

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        self._tensors = load_file(file)
        self._is_weight_only = "w8a16" in file.name

    def expected(self, layer: str, dtype: str, size: int, rank: int) -> dict[str, np.ndarray]:
        theirs = {
            "self_attention.linear_qkv": [f"self_attn.{part}_proj" for part in "qkv"],
            "self_attention.linear_proj": ["self_attn.o_proj"],
            "mlp.linear_fc1": ["mlp.gate_up_proj"],
            "mlp.linear_fc2": ["mlp.down_proj"],
        }[layer]
        parts = [self._of_rank(layer, name, size, rank) for name in theirs]
        stacked = {
            name: np.concatenate([part[name] for part in parts])
            for name in ("weight", "weight_scale", "weight_offset", "deq_scale", "quant_bias")
            if name in parts[0]
        }
        found = {"weight": stacked["weight"]}
        if self._is_weight_only:
            scale, offset = stacked["weight_scale"][:, 0], stacked["weight_offset"][:, 0]
            return found | {"w_scale": _cast(scale, dtype), "w_offset": _cast(-offset, dtype)}
        if "input_scale" not in parts[0]:
            return found | {"w_scale": stacked["weight_scale"][:, 0]}
        deq_scale = stacked["deq_scale"]
        found["deq_scale"] = deq_scale.view(np.int32).astype(np.int64)
        if dtype != "float16":
            found["deq_scale"] = deq_scale
        found["quant_bias"] = stacked["quant_bias"]
        found["input_scale"] = _cast(1 / parts[0]["input_scale"], dtype)
        return found | {"input_offset": _cast(parts[0]["input_offset"], dtype)}

    def _of_rank(self, layer: str, name: str, size: int, rank: int) -> dict[str, np.ndarray]:
        prefix = f"model.layers.1.{name}."
        own = {
            key.removeprefix(prefix): tensor
            for key, tensor in self._tensors.items()
            if key.startswith(prefix)
        }
        if "input_zero_point" in own:  # compressed-tensors: what msModelSlim has is made of these
            offset = own["input_offset"] = own["input_zero_point"].astype(np.float32)
            sums = own["weight"].astype(np.int64).sum(axis=1)
            own["quant_bias"] = (-offset[0] * sums).astype(np.int32)
            own["deq_scale"] = own["input_scale"] * own["weight_scale"][:, 0]
        elif "deq_scale" in own:
            own["deq_scale"] = own["deq_scale"].astype(np.uint32).view(np.float32)
        by_row = {key: t for key, t in own.items() if not key.startswith("input_")}
        if layer in ROW_PARALLEL:
            own["weight"] = np.split(own["weight"], size, axis=1)[rank]
            if rank > 0 and "quant_bias" in own:
                own["quant_bias"] = np.zeros_like(own["quant_bias"])
            return own
        return own | {key: _rows(t, name, size, rank) for key, t in by_row.items()}


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """By torch; bits of bfloat16, which NumPy has not."""
    tensor = torch.from_numpy(array.astype(np.float32)).to(getattr(torch, dtype))
    return (tensor.view(torch.uint16) if dtype == "bfloat16" else tensor).numpy()


def _rows(array: np.ndarray, name: str, size: int, rank: int) -> np.ndarray:
    if name.endswith("gate_up_proj"):
        halves = np.split(array, 2)
        return np.concatenate([np.split(half, size)[rank] for half in halves])
    if name.endswith("q_proj"):
        return np.split(array, size)[rank]
    heads = array.reshape(GROUPS, -1, *array.shape[1:])
    heads = np.repeat(heads, max(size // GROUPS, 1), axis=0)
    return np.split(heads, size)[rank].reshape(-1, *array.shape[1:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("size", SIZES)
def test_each_rank_has_its_integers_and_what_belongs_to_them(
    size: int, dtype: str, folder: Path, calls: Counter[str]
) -> None:
    stored = Stored(folder)
    for rank in range(size):
        parameters = open_rank(folder, dtype, size, rank).network.model.get_params_dict()
        for layer in (*ROW_PARALLEL, "self_attention.linear_qkv", "mlp.linear_fc1"):
            for part, expected in stored.expected(layer, dtype, size, rank).items():
                name = f"{LAYER}{layer}.{part}"
                found = parameters[name].asnumpy()
                if found.dtype.itemsize == 2 and expected.dtype == np.uint16:
                    found = found.view(np.uint16)
                assert found.dtype == expected.dtype, name
                np.testing.assert_array_equal(found, expected, f"{name} of rank {rank}")


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_products_sum_to_the_whole(size: int, folder: Path, calls: Counter[str]) -> None:
    """quant_bias is the whole row's, wherever the columns lie."""
    for layer in ROW_PARALLEL:
        assert _difference_of_sums(folder, layer, size) < 1e-5


def test_a_quant_bias_on_every_rank_is_found(
    folder: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = IntegerMethod.create_weights

    def mutated(self: IntegerMethod, *arguments: Any, **named: Any) -> None:
        create(self, *arguments, **named)
        self._has_quant_bias = True

    monkeypatch.setattr(IntegerMethod, "create_weights", mutated)
    is_static = any(f"{name}0" in folder.parts for name in ("slim-w8a8-int64", "ct-w8a8-static"))
    assert (_difference_of_sums(folder, "mlp.linear_fc2", 2) > 1e-3) == is_static


def _difference_of_sums(folder: Path, layer: str, size: int) -> float:
    def product(x: np.ndarray, of: int, rank: int) -> Any:
        cell = open_rank(folder, "float32", of, rank).network.model.decoder.layers[1]
        for name in layer.split("."):
            cell = getattr(cell, name)
        return cell.quant_method.apply(cell, Tensor(x), cell.weight, None).asnumpy()

    # Each rank's part of a row has the row's largest element: tokens are rounded alike.
    columns = 1096 if layer.endswith("fc2") else 8 * HEAD_DIM
    x = np.random.default_rng(3).uniform(-2, 2, (5, columns)).astype(np.float32)
    x[:, :: columns // size] = 3
    whole = product(x, 1, 0)
    parts = [product(part, size, rank) for rank, part in enumerate(np.split(x, size, axis=1))]
    return relative_error(sum(parts), whole)


@pytest.mark.tp
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_have_the_logits_of_as_many_cards(size: int, tmp_path: Path) -> None:
    """With tokens rounded by each card's part of them; static scales are one process's."""
    source = hf_oracle.save_random_checkpoint(tmp_path / "hf", **CHANGES)
    cases = ("slim-w8a8", "slim-w8a8-dynamic", "ct-w8a8-static", "slim-w8a16-asymmetric")
    for name in cases:
        folders.write(source, tmp_path / name, CASES[name])
    words = " ".join(str(tmp_path / name) for name in cases)
    command = f"{split_worker.__file__} {size} {words}"
    ended = Job(tmp_path, command, str(size), GLOG_v="3").wait(timeout_s=300)
    assert ended.exit_code == 0, ended.stderr[-2000:]
    tokenizer = AutoTokenizer.from_pretrained(source)
    for name in cases:
        model = hf_oracle.load(source)
        stored_oracle.put_into(model, tmp_path / name, num_cards=size)
        expected = hf_oracle.logits_of(model, split_worker.PROMPT)
        prompts = [tokenizer(prompt)["input_ids"] for prompt in split_worker.PROMPTS]
        tokens = [hf_oracle.greedy_tokens_of(model, prompt, 6) for prompt in prompts]
        ranks = [dict(np.load(tmp_path / f"{name}-{size}-{rank}.npz")) for rank in range(size)]
        for found in ranks:
            assert relative_error(found["logits"], expected) < 1e-4
            assert found["tokens"].tolist() == tokens
            np.testing.assert_array_equal(found["logits"], ranks[0]["logits"])
