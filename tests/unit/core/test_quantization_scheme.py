"""core/quantization_scheme.py: which schemes there are and what they take."""

from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantization_scheme import SCHEMES, read_scheme


def test_without_a_name_weights_stay_float() -> None:
    assert read_scheme(None, None) is None


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_found_by_its_name(name: str) -> None:
    scheme = read_scheme(name, None)
    assert scheme is not None
    digits = f"w{scheme.weight_bits}a{scheme.activation_bits}"
    assert name.startswith(digits)


@pytest.mark.parametrize("name", ["int8", "W8A16", "", "ascend", 8, ["w8a16"]])
def test_another_name_is_refused_with_those_that_exist(name: Any) -> None:
    names = "w8a16, w8a8_dynamic, w4a16, w4a8_dynamic"
    with pytest.raises(ConfigError, match=f"quantization must be one of {names}, got"):
        read_scheme(name, None)


@pytest.mark.parametrize("name", ["w4a16", "w4a8_dynamic"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int4_takes_a_group_size(name: str, group_size: int) -> None:
    scheme = read_scheme(name, group_size)
    assert scheme is not None
    assert scheme.group_size == group_size


@pytest.mark.parametrize("group_size", [0, -1, 1, 16, 256, "64", True, 32.5])
def test_other_group_sizes_are_refused(group_size: Any) -> None:
    with pytest.raises(ConfigError, match="quantization_group_size must be one of 32, 64, 128"):
        read_scheme("w4a16", group_size)


@pytest.mark.parametrize("name", ["w8a16", "w8a8_dynamic", None])
def test_a_group_size_without_groups_is_refused(name: str | None) -> None:
    with pytest.raises(ConfigError, match="goes with quantization w4a16, w4a8_dynamic only"):
        read_scheme(name, 64)


def test_bytes_count_weights_and_scales() -> None:
    int8, int4 = SCHEMES["w8a16"], SCHEMES["w4a16"]
    assert int8.count_bytes(10, 256) == 10 * 256 + 10 * 4
    assert int4.count_bytes(10, 256) == 10 * 128 + 10 * 2 * 4
    assert int4.count_bytes(10, 100) == 10 * 50 + 10 * 4
