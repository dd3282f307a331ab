"""backends/cpu/footprint.py: the bytes of a network from its config alone."""

from dataclasses import replace

import pytest

from mindformers_glm.backends.cpu.footprint import (
    count_kv_block_bytes,
    count_weight_bytes,
    count_workspace_bytes,
)
from mindformers_glm.config.runner_settings import RunnerSettings
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


def test_float_layers_take_what_their_type_takes() -> None:
    config = replace(GLM_9B, float_layers_id=(0, 39))
    found = {
        name: count_weight_bytes(
            config, RunnerSettings.for_config(config, "float32", quantization=name)
        )
        for name in (None, "w8a16")
    }
    assert found[None] == _count()
    in_layer = (4096 + 2 * 256 + 4096 + 3 * 13696) * 4096
    rows_in_layer = 4096 + 2 * 256 + 4096 + 2 * 13696 + 4096
    # A byte more for each weight, and no scales.
    assert found["w8a16"] == _count(quantization="w8a16") + 2 * (in_layer - 4 * rows_in_layer)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_rank_has_its_share_of_the_weights_and_whole_norms(size: int) -> None:
    kv_size = 128 * max(2 // size, 1)  # a key-value head is held by several ranks
    qkv_size = 4096 // size + 2 * kv_size
    per_layer = (qkv_size + 4096 // size + 3 * 13696 // size) * 4096
    vectors = 40 * (4 * 4096 + qkv_size) + 4096
    expected = 2 * (2 * EMBEDDING // size + 40 * per_layer) + 4 * vectors
    assert _count(model_parallel=size, model_parallel_rank=1) == expected


@pytest.mark.parametrize(("size", "heads"), [(1, 2), (2, 1), (4, 1)])
def test_a_rank_caches_only_the_key_value_heads_it_has(size: int, heads: int) -> None:
    settings = RunnerSettings.with_defaults("bfloat16", 8192, block_size=32, model_parallel=size)
    assert count_kv_block_bytes(GLM_9B, settings) == 32 * 40 * 2 * heads * 128 * 2


def test_the_workspace_shrinks_with_the_ranks() -> None:
    whole, half = (
        count_workspace_bytes(
            GLM_9B, RunnerSettings.with_defaults("bfloat16", 8192, model_parallel=size)
        )
        for size in (1, 2)
    )
    assert half < whole
