"""engine/memory_plan.py: a real model against the memory of a machine, before it is loaded."""

import pytest

from mindformers_glm.backends import BACKENDS
from mindformers_glm.backends.cpu import host_share
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import MemoryBudgetError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.memory_plan import check_memory_before_loading
from tests.unit.core.glm_9b import GLM_9B


def _check(available_gb: int, quantization: str | None = None) -> None:
    settings = RunnerSettings.with_defaults(
        "bfloat16", 32768, max_model_len=1024, quantization=quantization
    )
    group = ProcessGroup(TensorParallel())
    cap_bytes = available_gb * 2**30
    check_memory_before_loading(BACKENDS["CPU"], GLM_9B, settings, cap_bytes, group)


@pytest.fixture(autouse=True)
def _the_machine_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_share, "read_available_memory", lambda: 2**40)


@pytest.mark.parametrize(
    ("available_gb", "quantization"),
    [(19, None), (11, "w8a16"), (11, "w8a8_dynamic"), (7, "w4a16"), (7, "w4a8_dynamic")],
)
def test_the_9b_fits_where_its_format_does(available_gb: int, quantization: str | None) -> None:
    _check(available_gb, quantization)
    with pytest.raises(MemoryBudgetError):
        _check(available_gb - 2, quantization)


@pytest.mark.parametrize(("available_gb", "advice"), [(12, "w8a16"), (7, "w4a16")])
def test_a_quantization_that_fits_is_advised(available_gb: int, advice: str) -> None:
    with pytest.raises(MemoryBudgetError, match=f"set quantization to {advice} or"):
        _check(available_gb)


def test_no_quantization_is_advised_where_none_fits() -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        _check(5)
    assert "quantization" not in str(caught.value)
