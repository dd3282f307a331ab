"""core/footprint.py: the bytes of a network from its config alone."""

import pytest

from mindformers_glm.core.footprint import count_weight_bytes
from mindformers_glm.core.runner_settings import RunnerSettings
from tests.unit.core.glm_9b import GLM_9B

# 151552 x 4096, and the linear layers: per layer (4608 + 4096 + 3 * 13696) x 4096, and the head.
EMBEDDING = 620_756_992
LINEARS = 40 * (4608 + 4096 + 3 * 13696) * 4096 + EMBEDDING
# Outputs, each with a scale for each group of columns: rows of qkv, proj, gate, up, fc2, head.
OUTPUTS = 40 * (4608 + 4096 + 2 * 13696 + 4096) + 151552
VECTORS = 40 * (4 * 4096 + 4608) + 4096


def _count(**settings: str | int) -> int:
    return count_weight_bytes(GLM_9B, RunnerSettings.with_defaults("bfloat16", 8192, **settings))


def test_float_weights_take_what_their_type_takes() -> None:
    assert _count() == 2 * (EMBEDDING + LINEARS) + 4 * VECTORS
    assert _count(params_dtype="float32") == 4 * (EMBEDDING + LINEARS + VECTORS)


@pytest.mark.parametrize("name", ["w8a16", "w8a8_dynamic"])
def test_int8_takes_a_byte_and_a_scale_a_row(name: str) -> None:
    assert _count(quantization=name) == 2 * EMBEDDING + LINEARS + 4 * OUTPUTS + 4 * VECTORS


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int4_takes_half_a_byte_and_a_scale_a_group(group_size: int) -> None:
    found = _count(quantization="w4a16", quantization_group_size=group_size)
    num_scales = LINEARS // group_size  # 4096 and 13696 are multiples of 128
    assert found == 2 * EMBEDDING + LINEARS // 2 + 4 * num_scales + 4 * VECTORS
