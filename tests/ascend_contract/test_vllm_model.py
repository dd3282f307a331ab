"""vLLM-MindSpore's calls on our classes, and on upstream's beside them, against Hugging Face."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import mindspore as ms
import pytest
from mindformers.core.context.build_context import MFContextOperator

from mindformers_glm import vllm_mindspore_plugin
from tests.ascend_contract.steps import BLOCK_SIZE, NUM_BLOCKS, KnownSequences
from tests.ascend_contract.vllm_model import VllmModel, make_config
from tests.ascend_contract.vllm_registry import imported_registry
from tests.model.dialects import save_dialect

MAX_MODEL_LEN = 128
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
    folder, source = save_dialect(tmp_path, dialect)
    model = open_model(folder, dtype)
    assert type(model.network).__module__.startswith("mindformers_glm.")
    assert model.network.max_position_embeddings == MAX_MODEL_LEN  # its rotary tables
    model.load_weights()
    errors = KnownSequences(source).errors(model.compute_logits)
    assert max(errors.values()) < tolerance, errors


def test_the_plugin_leaves_glm4_to_upstreams_class(open_model: Open, tmp_path: Path) -> None:
    folder, source = save_dialect(tmp_path, "glm4")
    with imported_registry():
        vllm_mindspore_plugin.register()
        model = open_model(folder, "float32")
    assert type(model.network).__module__ == "mindformers.models.glm4.modeling_glm4_infer"
    model.load_weights()
    errors = KnownSequences(source).errors(model.compute_logits)
    assert max(errors.values()) < 1e-5, errors
