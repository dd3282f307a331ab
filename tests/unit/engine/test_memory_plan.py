from dataclasses import replace
from typing import Any

import pytest

from mindformers_glm.backends import MemoryNeed
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import MemoryBudgetError
from mindformers_glm.engine.memory_plan import (
    MemoryDemand,
    MemorySupply,
    plan_kv_blocks,
)

GIB = 2**30
# 16 GiB of weights, 1 GiB of workspace, 4 sequences of 4 GiB each: 32 blocks of 128 MiB.
NEED = MemoryNeed(weights_bytes=16 * GIB, workspace_bytes=GIB, kv_block_bytes=GIB // 8)
SETTINGS = RunnerSettings(
    params_dtype="bfloat16",
    compute_dtype="bfloat16",
    rotary_dtype="bfloat16",
    max_num_seqs=4,
    max_num_batched_tokens=512,
    max_model_len=1024,
    block_size=32,
)
DEMAND = MemoryDemand(NEED, SETTINGS, larger_model_parallel=(2, 4, 8))


def _with_settings(**changes: Any) -> MemoryDemand:
    return replace(DEMAND, settings=replace(SETTINGS, **changes))


def _supply(cap_gib: float | None = None, available_gib: float | None = None) -> MemorySupply:
    sizes = [None if size is None else int(size * GIB) for size in (cap_gib, available_gib)]
    return MemorySupply(*sizes)


def _refusal(demand: MemoryDemand, supply: MemorySupply) -> str:
    with pytest.raises(MemoryBudgetError) as caught:
        plan_kv_blocks(demand, supply)
    return str(caught.value)


@pytest.mark.parametrize(
    ("supply", "blocks"),
    [
        (_supply(), 4 * 32),
        (_supply(cap_gib=59, available_gib=100), 4 * 32),  # no more than the sequences can use
        (_supply(cap_gib=25, available_gib=100), 8 * 8),
        (_supply(cap_gib=59, available_gib=25), 8 * 8),
        (_supply(available_gib=25.1), 8 * 8),  # a part of a block is none
        (_supply(cap_gib=21), 32),  # exactly one sequence
    ],
)
def test_blocks_are_limited_by_cap_memory_and_use(supply: MemorySupply, blocks: int) -> None:
    assert plan_kv_blocks(DEMAND, supply) == blocks


def test_a_length_that_ends_inside_a_block_needs_the_whole_block() -> None:
    demand = _with_settings(max_model_len=33)
    assert plan_kv_blocks(demand, _supply()) == 4 * 2


def test_the_refusal_says_what_is_needed_what_there_is_and_what_would_fit() -> None:
    assert _refusal(DEMAND, _supply(cap_gib=20, available_gib=100)) == (
        "The model needs 21.0 GB (weights 16.0 GB in bfloat16, workspace 1.0 GB, KV cache 4.0 GB "
        "for one sequence of 1024 tokens), but max_device_memory allows 20.0 GB: set max_model_len "
        "to 768 or less or raise max_device_memory to 21504MB or more or set model_parallel to 2 "
        "(scripts/msrun_launcher.sh starts the processes)."
    )


def test_the_advised_length_fits() -> None:
    demand = _with_settings(max_model_len=768)
    assert plan_kv_blocks(demand, _supply(cap_gib=20)) == 24


def test_a_smaller_dtype_is_advised_only_where_it_fits() -> None:
    demand = _with_settings(params_dtype="float32", compute_dtype="float32")
    assert "set params_dtype to bfloat16" in _refusal(demand, _supply(cap_gib=14))
    assert "params_dtype to" not in _refusal(demand, _supply(cap_gib=12))
    assert "params_dtype to" not in _refusal(DEMAND, _supply(cap_gib=14))


def test_the_mildest_quantization_that_fits_is_advised() -> None:
    schemes = {"w8a16": 9 * GIB, "w8a8_dynamic": 9 * GIB, "w4a16": 5 * GIB}
    demand = replace(DEMAND, weights_bytes_by_scheme=schemes)
    assert "or set quantization to w8a16 or raise" in _refusal(demand, _supply(cap_gib=20))
    assert "set quantization to w8a16" in _refusal(demand, _supply(cap_gib=14))
    assert "set quantization to w4a16" in _refusal(demand, _supply(cap_gib=13))
    assert "quantization" not in _refusal(demand, _supply(cap_gib=9))


def test_a_quantized_model_is_called_so_and_may_be_quantized_further() -> None:
    demand = replace(
        _with_settings(params_dtype="float32", compute_dtype="float32", quantization="w8a16"),
        need=replace(NEED, weights_bytes=9 * GIB),
        weights_bytes_by_scheme={"w8a16": 9 * GIB, "w4a16": 5 * GIB},
    )
    refusal = _refusal(demand, _supply(cap_gib=10))
    assert "weights 9.0 GB in w8a16" in refusal
    assert "set quantization to w4a16" in refusal
    assert "params_dtype" not in refusal


def test_a_higher_cap_is_not_advised_where_the_machine_has_too_little() -> None:
    refusal = _refusal(DEMAND, _supply(cap_gib=59, available_gib=10))
    assert "but 10.0 GB of memory is available" in refusal
    assert "raise max_device_memory" not in refusal


def test_more_ranks_are_advised_under_a_cap_only() -> None:
    assert "set model_parallel to 4" in _refusal(DEMAND, _supply(cap_gib=10, available_gib=100))
    assert "model_parallel" not in _refusal(DEMAND, _supply(cap_gib=59, available_gib=10))
    of_four = replace(_with_settings(model_parallel=4), larger_model_parallel=(8,))
    assert "set model_parallel to 8" in _refusal(of_four, _supply(cap_gib=12, available_gib=100))
    cannot = replace(DEMAND, larger_model_parallel=())
    assert "model_parallel" not in _refusal(cannot, _supply(cap_gib=20, available_gib=100))


def test_more_ranks_are_advised_where_each_has_memory_of_its_own() -> None:
    card = MemorySupply(cap_bytes=None, available_bytes=10 * GIB, is_for_each_rank=True)
    assert _refusal(DEMAND, card).endswith(
        "but 10.0 GB of memory is available: set model_parallel to 4 "
        "(scripts/msrun_launcher.sh starts the processes)."
    )
    capped = replace(card, cap_bytes=20 * GIB, available_bytes=12 * GIB)
    assert "set model_parallel to 2" in _refusal(DEMAND, capped)


def test_without_a_remedy_the_refusal_says_so() -> None:
    assert "use a machine with more memory" in _refusal(DEMAND, _supply(available_gib=1))


def test_integers_of_a_checkpoint_do_not_shrink_with_the_type_of_the_rest() -> None:
    exact = {"params_dtype": "float32", "compute_dtype": "float32"}
    assert "set params_dtype to bfloat16" in _refusal(_with_settings(**exact), _supply(20))
    refusal = _refusal(_with_settings(**exact, stored_schemes=()), _supply(20))
    assert "the checkpoint's integers and float32" in refusal
    assert "params_dtype to" not in refusal
    assert "quantization to" not in refusal
