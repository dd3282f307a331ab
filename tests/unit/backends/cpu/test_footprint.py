"""backends/cpu/footprint.py: the bytes of a network from its config alone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mindformers_glm.backends.cpu.footprint import (
    count_kv_block_bytes,
    count_weight_bytes,
    count_workspace_bytes,
)
from mindformers_glm.config.runner_settings import RunnerSettings
from tests.e2e.random_checkpoint import write_checkpoint
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


@pytest.mark.parametrize(
    ("dtype", "of_checkpoint", "head_bytes"),
    [("float16", False, 256), ("float32", False, 512), ("int8", False, 132), ("int8", True, 128)],
)
def test_a_block_takes_what_its_heads_take(
    dtype: str, of_checkpoint: bool, head_bytes: int
) -> None:
    settings = RunnerSettings.with_defaults("bfloat16", 8192, kv_cache_dtype=dtype)
    settings = replace(settings, has_kv_scales=of_checkpoint)
    # Keys and values of 40 layers, 2 heads of 128 and 32 tokens; a scale has 4 bytes.
    assert count_kv_block_bytes(GLM_9B, settings) == 2 * 40 * 2 * 32 * head_bytes


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
    ffn = {2: 53, 4: 27, 8: 13}[size] * 128  # rank 1's of 107 groups of columns
    per_layer = (qkv_size + 4096 // size + 3 * ffn) * 4096
    vectors = 40 * (4 * 4096 + qkv_size) + 4096
    expected = 2 * (2 * EMBEDDING // size + 40 * per_layer) + 4 * vectors
    assert _count(model_parallel=size, model_parallel_rank=1) == expected


def test_groups_that_several_ranks_share_are_whole_on_each() -> None:
    config = replace(GLM_9B, num_attention_heads=8, num_key_value_heads=2, head_dim=20)
    split = {"model_parallel": 2, "model_parallel_rank": 1}
    found = {
        name: count_weight_bytes(
            config, RunnerSettings.for_config(config, "float32", quantization=name, **split)
        )
        for name in ("w8a16", "w4a16")
    }
    qkv_size, ffn = 80 + 2 * 20, 53 * 128
    proj = 160  # its own 80 columns lie in two groups, of which the second is cut short
    per_layer = (qkv_size + proj + 3 * ffn) * 4096
    output = EMBEDDING // 2
    vectors = 40 * (4 * 4096 + qkv_size) + 4096
    scales = 40 * (qkv_size + 4096 + 2 * ffn + 4096) + 151552 // 2
    assert found["w8a16"] == EMBEDDING + 40 * per_layer + output + 4 * (vectors + scales)
    scales = 40 * ((qkv_size + 2 * ffn) * 32 + 4096 * (2 + 53)) + 151552 // 2 * 32
    assert found["w4a16"] == EMBEDDING + (40 * per_layer + output) // 2 + 4 * (vectors + scales)


@pytest.mark.parametrize(("size", "heads"), [(1, 2), (2, 1), (4, 1)])
def test_a_rank_caches_only_the_key_value_heads_it_has(size: int, heads: int) -> None:
    settings = RunnerSettings.with_defaults("bfloat16", 8192, block_size=32, model_parallel=size)
    assert count_kv_block_bytes(GLM_9B, settings) == 32 * 40 * 2 * heads * 128 * 2


@pytest.mark.parametrize(("num_rows", "sampled_rows"), [(512, 32), (8, 8)])
@pytest.mark.parametrize("size", [1, 2])
def test_the_workspace_is_the_activations_of_a_step_its_logits_and_the_rotary_table(
    num_rows: int, sampled_rows: int, size: int
) -> None:
    settings = RunnerSettings.with_defaults(
        "bfloat16", 8192, model_parallel=size, max_num_batched_tokens=num_rows
    )
    # A program keeps three results and makes one (csrc): whole rows on every rank. What lies within
    # a branch is split: queries, keys and values, gate and up. Everybody gets all logits.
    ffn = {1: 107, 2: 54}[size] * 128
    row = (3 + 1) * 4096 + (4096 + 2 * 256) // size + 2 * ffn
    logits = 2 * sampled_rows * 151552
    expected = 4 * (num_rows * row + logits + 8192 * 64)
    assert count_workspace_bytes(GLM_9B, settings) == expected


def test_logits_of_all_sequences_are_computed_together_up_to_128() -> None:
    counted = [
        count_workspace_bytes(
            GLM_9B, RunnerSettings.with_defaults("bfloat16", 8192, max_num_seqs=num_seqs)
        )
        for num_seqs in (1, 32, 96, 128, 129)
    ]
    row = 4 * 151552
    assert [one - counted[0] for one in counted] == [
        *(0, 0, 2 * 64 * row, 2 * 96 * row),
        2 * 96 * row + 129 * row,  # in two parts, joined
    ]


# Sizes of a network whose activations are mostly of one kind, and its weights few.
_SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
_NETWORKS = {
    "live hidden states": {**_SMALL, "hidden_size": 16384},
    "logits": {**_SMALL, "vocab_size": 300_000},
}
# The first answer compiles the graph; what the process takes after it belongs to the largest step.
_MEASURE_LARGEST_STEP = """
import sys
from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu.footprint import count_workspace_bytes

def read_status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

num_rows, num_seqs = 496, 31
params = SamplingParams(max_new_tokens=1, do_sample=False, ignore_eos=True)
with LLM(sys.argv[1], max_model_len=64, max_num_seqs=32, max_num_batched_tokens=512) as llm:
    llm.generate([[0]], params)
    before, earlier_peak = read_status("VmRSS"), read_status("VmHWM")
    llm.generate([[seq] * (num_rows // num_seqs) for seq in range(num_seqs)], params)
    peak = read_status("VmHWM")
    assert peak > earlier_peak
    print(count_workspace_bytes(llm.config, llm.settings), peak - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sizes", _NETWORKS.values(), ids=_NETWORKS)
def test_the_workspace_is_what_the_largest_step_takes(
    sizes: dict[str, int], tmp_path: Path
) -> None:
    pytest.importorskip("mindspore")
    command = [
        sys.executable,
        "-c",
        _MEASURE_LARGEST_STEP,
        str(write_checkpoint(tmp_path, **sizes)),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    counted, taken = map(int, run.stdout.split())
    assert taken <= counted <= 2.2 * taken
