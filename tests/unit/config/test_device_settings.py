"""config/device_settings.py: what is handed to a device."""

from typing import Any

import pytest

from mindformers_glm.backends import BACKENDS
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.core.sharding import TensorParallel
from tests.unit.config.test_settings_table import load


def test_defaults_are_those_of_the_table() -> None:
    handed = load().llm["device_options"]
    assert DeviceSettings.from_options(handed, None) == DeviceSettings()
    assert DeviceSettings.from_options(None, 5) == DeviceSettings(max_device_memory=5)


def test_what_the_command_line_says_is_handed_on() -> None:
    given = ("--mode", "PYNATIVE_MODE", "--device_id", "3", "--infer_precision_sync", "True")
    config = load(*given, "--device_target", "Ascend", "--context.deterministic", "ON")
    settings = DeviceSettings.from_options(config.llm["device_options"], None)
    wanted = {"mode": 1, "device_id": 3, "infer_precision_sync": True, "deterministic": "ON"}
    assert settings == DeviceSettings(**wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": 1}, "device_options has no 'device': it takes .*device_id"),
        ({"max_device_memory": 1}, "has no 'max_device_memory'"),
        ({"device_id": -1}, "device_id in device_options must be at least 0, got -1"),
        ({"device_id": "one"}, "device_id in device_options must be a whole number, got 'one'"),
        ({"mode": 2}, "mode in device_options is 2 but can only be 0 or GRAPH_MODE or 1"),
        (["device_id"], r"device_options must be a dict of names and values, got \['device_id'\]"),
        ("device_id=1", "device_options must be a dict"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeviceSettings.from_options(options, None)


def test_the_cpu_has_no_pynative_mode() -> None:
    with pytest.raises(UnsupportedError, match=r"context\.mode 1 .*leave it out or set 0"):
        BACKENDS["CPU"].connect(TensorParallel(), DeviceSettings(mode=1))


def test_an_option_that_changes_nothing_on_the_cpu_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"device_id": 1, "deterministic": "ON", "infer_boost": "on"}
    BACKENDS["CPU"].connect(TensorParallel(), DeviceSettings.from_options(options, None))
    assert capsys.readouterr().err.splitlines() == [
        "mindformers_glm: deterministic ON changes nothing here: "
        "the CPU operators are deterministic in either case",
        "mindformers_glm: device_id 1 changes nothing here: it takes effect on Ascend only",
    ]


def test_what_the_command_line_has_told_is_not_told_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handed = load("--device_target", "CPU", "--device_id", "1").llm["device_options"]
    assert "--device_id 1 changes nothing here" in capsys.readouterr().err
    BACKENDS["CPU"].connect(TensorParallel(), DeviceSettings.from_options(handed, None))
    assert capsys.readouterr().err == ""


def test_attention_without_a_paged_cache_is_refused_on_ascend() -> None:
    with pytest.raises(UnsupportedError, match="use_flash_attention False"):
        BACKENDS["Ascend"].connect(TensorParallel(), DeviceSettings(use_flash_attention=False))
