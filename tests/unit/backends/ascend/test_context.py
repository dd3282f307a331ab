"""backends/ascend/context.py: what MindSpore is told, and what it says where there is no CANN."""

import os

import pytest

pytest.importorskip("mindspore")

from mindformers_glm.backends.ascend.context import context_of, take_card
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.environment import declare_prediction
from mindformers_glm.core.errors import UnsupportedError


def test_context_is_what_upstream_sets_for_a_prediction() -> None:
    assert context_of(DeviceSettings()) == {
        "mode": 0,
        "jit_config": {"jit_level": "O0", "infer_boost": "on"},
        "max_call_depth": 10000,
        "ascend_config": {"precision_mode": "must_keep_origin_dtype"},
    }


def test_a_cap_of_memory_is_told_in_gigabytes() -> None:
    settings = DeviceSettings(max_device_memory=29 * 2**30 + 2**29)
    assert context_of(settings)["max_device_memory"] == "29.500GB"


def test_a_missing_library_of_cann_is_one_sentence() -> None:
    with pytest.raises(UnsupportedError, match=r"cannot use Ascend: lib\S+\.so.*set_env\.sh"):
        take_card(0)


def test_pynative_is_told_to_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENFORCE_EAGER", "RUN_MODE", "LCCL_DETERMINISTIC", "CUSTOM_MATMUL_SHUFFLE"):
        monkeypatch.setenv(name, "before")
    monkeypatch.setenv("MS_ALLOC_CONF", "")
    monkeypatch.delenv("MS_ALLOC_CONF")
    declare_prediction(is_pynative=True, is_deterministic=False)
    assert (os.environ["ENFORCE_EAGER"], os.environ["RUN_MODE"]) == ("True", "predict")
    assert os.environ["LCCL_DETERMINISTIC"] == "before"
    assert os.environ["MS_ALLOC_CONF"] == "enable_vmm:False"
    declare_prediction(is_pynative=False, is_deterministic=True)
    assert os.environ["ENFORCE_EAGER"] == "False"
    assert (os.environ["LCCL_DETERMINISTIC"], os.environ["CUSTOM_MATMUL_SHUFFLE"]) == ("1", "off")
