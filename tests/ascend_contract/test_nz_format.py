"""An Atlas 300I Duo: what is cast to its format, and in which shape it gets the KV cache."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import mindspore as ms
import pytest
from mindformers.parallel_core.inference.tensor_parallel import layers
from mindspore import Tensor, ops

from mindformers_glm.backends.ascend import nz_format
from mindformers_glm.backends.ascend.runner import AscendModelRunner
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from tests import quantized_folders
from tests.ascend_contract.ranks import as_rank
from tests.model import hf_oracle

FRACTAL_NZ = 29  # of CANN's aclFormat
MATRICES = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1")


@pytest.fixture
def load_and_note(calls: Counter[str]) -> Iterator[Callable[[Path], tuple[list[Tensor], Any]]]:
    """Loads the second of two ranks as on a 310P; gives what is cast then and later, and it."""
    cast: list[Tensor] = []

    def format_cast(tensor: Tensor, acl_format: int) -> Tensor:
        assert acl_format == FRACTAL_NZ
        cast.append(tensor)
        return tensor

    def load(folder: Path) -> tuple[list[Tensor], Any]:
        with Checkpoint.open(folder, find_format=find_format) as checkpoint:
            settings = RunnerSettings.for_config(
                config := GlmConfig.from_hf(folder),
                "float16",
                params_dtype="float16",
                compute_dtype="float16",
                max_model_len=32,
                model_parallel=2,
                model_parallel_rank=1,
            )
            return cast, AscendModelRunner(config, checkpoint, settings)

    with (
        as_rank(2, 1),
        mock.patch.object(nz_format, "is_310p", return_value=True),
        mock.patch.object(layers, "is_310p", return_value=True),
        mock.patch.object(ops.auto_generate, "format_cast", format_cast),
    ):
        yield load


@pytest.mark.parametrize("is_tied", [False, True])
def test_matrices_and_cache_are_cast(
    is_tied: bool, load_and_note: Callable[[Path], tuple[list[Tensor], Any]], tmp_path: Path
) -> None:
    folder = hf_oracle.save_random_checkpoint(
        tmp_path, "bfloat16", vocab_size=520, tie_word_embeddings=is_tied
    )
    cast, runner = load_and_note(folder)
    names = {tensor.name for tensor in cast}
    cast.clear()
    runner.allocate_kv_cache(5)
    wanted = {
        f"decoder.layers.{layer}.{name}.weight"
        for layer in range(2)
        for name in (*MATRICES, "mlp.linear_fc2")
    }
    assert names == wanted | (set() if is_tied else {"output_layer.weight"})
    assert len(cast) == 2 * 2
    # One of 2 KV heads of 16 numbers in blocks of 32 tokens.
    assert all((tensor.shape, tensor.dtype) == ((5, 32, 16), ms.float16) for tensor in cast)
    runner.close()


def test_integers_are_cast_and_not_what_lies_beside_them(
    load_and_note: Callable[[Path], tuple[list[Tensor], Any]], tmp_path: Path
) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "hf", vocab_size=520)
    case = quantized_folders.WITH_ACTIVATIONS["slim-w8a8"]
    quantized_folders.write(source, tmp_path / "quantized", case)
    cast, _ = load_and_note(tmp_path / "quantized")
    types = {tensor.name: tensor.dtype for tensor in cast}
    assert types.pop("output_layer.weight") == ms.float16
    assert set(types.values()) == {ms.int8}
    assert types.keys() == {
        f"decoder.layers.{layer}.{name}.weight"
        for layer in range(2)
        for name in (*MATRICES, "mlp.linear_fc2")
    }
