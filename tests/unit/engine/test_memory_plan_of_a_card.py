"""engine/memory_plan.py: the released models against the memory of a card, before they load."""

from dataclasses import replace
from typing import Any

import pytest

from mindformers_glm.backends import BACKENDS
from mindformers_glm.backends.ascend.backend import AscendBackend
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import MemoryBudgetError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.memory_plan import check_memory_before_loading, predict_demand
from tests.unit.core.glm_9b import GLM_9B

pytest.importorskip("mindspore")

GLM_32B = replace(
    GLM_9B,
    hidden_size=6144,
    intermediate_size=23040,
    num_attention_heads=48,
    num_hidden_layers=61,
    attention_bias=False,
)


def _settings(size: int, **changes: Any) -> RunnerSettings:
    types = {"params_dtype": "bfloat16", "compute_dtype": "bfloat16"}
    return RunnerSettings.with_defaults("bfloat16", 32768, model_parallel=size, **(types | changes))


def _check(
    config: GlmConfig, size: int, free_gib: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes = None if free_gib is None else int(free_gib * 2**30)
    monkeypatch.setattr(AscendBackend, "available_memory", lambda *_: free_bytes)
    group = ProcessGroup(TensorParallel())
    check_memory_before_loading(BACKENDS["Ascend"], config, _settings(size), None, group)


@pytest.mark.parametrize(
    ("config", "size", "free_gib"),
    [(GLM_9B, 1, 29), (GLM_9B, 2, 29), (GLM_32B, 2, 59), (GLM_32B, 4, 29), (GLM_32B, 1, None)],
)
def test_it_fits(
    config: GlmConfig, size: int, free_gib: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(config, size, free_gib, monkeypatch)


@pytest.mark.parametrize(
    ("config", "size", "free_gib", "advice"),
    [
        (GLM_32B, 1, 59, "set model_parallel to 2"),
        (GLM_32B, 2, 29, "set model_parallel to 4"),
        (GLM_9B, 1, 12, "set model_parallel to 2"),
        (GLM_9B, 1, 0, "use a machine with more memory"),
    ],
)
def test_more_cards_are_advised(
    config: GlmConfig,
    size: int,
    free_gib: float,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(MemoryBudgetError, match=f"memory is available: {advice}") as caught:
        _check(config, size, free_gib, monkeypatch)
    assert "quantization" not in str(caught.value)


def test_nothing_is_advised_that_is_refused_there() -> None:
    odd = replace(GLM_9B, vocab_size=151_554)  # in 2 parts, not in 4
    demand = predict_demand(BACKENDS["Ascend"], odd, _settings(1))
    assert demand.weights_bytes_by_scheme == {}
    assert demand.larger_model_parallel == (2,)
