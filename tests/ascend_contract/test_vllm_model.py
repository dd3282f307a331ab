"""vLLM-MindSpore's calls on our classes, and on upstream's beside them, against Hugging Face."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import mindspore as ms
import numpy as np
import pytest
from mindformers.core.context.build_context import MFContextOperator

from mindformers_glm import vllm_mindspore_plugin
from tests.ascend_contract.test_network import BLOCK_SIZE, STEPS, Sequences
from tests.ascend_contract.vllm_model import VllmModel, make_config
from tests.ascend_contract.vllm_registry import imported_registry
from tests.conftest import relative_error
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm

NUM_BLOCKS, MAX_MODEL_LEN = 40, 128
CACHE_SHAPE = (NUM_BLOCKS, BLOCK_SIZE, 2, 16)  # of hf_oracle's networks
Open = Callable[[Path, str], VllmModel]


@pytest.fixture
def open_model(with_ascend: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """As in a process of vLLM-MindSpore, on a machine with a card."""
    monkeypatch.setattr(MFContextOperator, "_instance", None)

    def open_it(folder: Path, dtype: str) -> VllmModel:
        config = make_config(folder, getattr(ms, dtype), dtype, MAX_MODEL_LEN, BLOCK_SIZE)
        return VllmModel(config, CACHE_SHAPE, num_layers=2)

    with mock.patch.dict(os.environ):  # build_mf_context changes it
        yield open_it


def _save(dialect: str, folder: Path) -> tuple[Path, Path]:
    """A folder to run, and the same weights as Hugging Face takes them."""
    model_type = "glm" if dialect == "chatglm" else dialect
    source = hf_oracle.save_random_checkpoint(folder / "hf", model_type=model_type)
    return (to_chatglm(source, folder / "chatglm") if dialect == "chatglm" else source), source


def _check_steps(model: VllmModel, source: Path, tolerance: float) -> None:
    oracle = hf_oracle.load(source)
    sequences = Sequences([12, 20, 30, 9, 9], oracle.config.vocab_size)
    expected = [hf_oracle.logits_of(oracle, text) for text in sequences.texts]
    for name, pieces in STEPS.items():
        found = model.compute_logits(sequences.batch(*pieces))
        wanted = np.concatenate([expected[n][begin:end] for n, begin, end in pieces])
        assert relative_error(found, wanted) < tolerance, name


@pytest.mark.parametrize(
    ("dialect", "dtype", "tolerance"),
    [
        ("glm4", "float32", 1e-5),
        ("glm", "float32", 1e-5),
        ("chatglm", "float32", 1e-5),
        ("chatglm", "float16", 4e-3),  # all types as it sets them on a 300I
    ],
)
def test_each_kind_of_step_equals_hugging_face(
    dialect: str, dtype: str, tolerance: float, open_model: Open, tmp_path: Path
) -> None:
    folder, source = _save(dialect, tmp_path)
    model = open_model(folder, dtype)
    assert type(model.network).__module__.startswith("mindformers_glm.")
    assert model.network.max_position_embeddings == MAX_MODEL_LEN  # its rotary tables
    model.load_weights()
    _check_steps(model, source, tolerance)


def test_the_plugin_leaves_glm4_to_upstreams_class(open_model: Open, tmp_path: Path) -> None:
    folder, source = _save("glm4", tmp_path)
    with imported_registry():
        vllm_mindspore_plugin.register()
        model = open_model(folder, "float32")
    assert type(model.network).__module__ == "mindformers.models.glm4.modeling_glm4_infer"
    model.load_weights()
    _check_steps(model, source, 1e-5)
