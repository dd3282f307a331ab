"""core/sharding.py: what each rank holds, against slices that NumPy cuts head by head."""

from dataclasses import replace

import numpy as np
import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import (
    can_split,
    check_split,
    cut_blocks,
    keep_blocks,
    partition,
)
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.sharding import (
    FFN,
    HIDDEN,
    KEY_VALUE,
    QUERY,
    VOCAB,
    Axis,
    TensorParallel,
    cut_tensor,
    describe_axis,
    stored_length,
)
from tests.unit.core.glm_9b import GLM_9B

TINY = replace(
    GLM_9B,
    hidden_size=6,
    intermediate_size=24,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=40,
)
SIZES = (1, 2, 4, 8)


def _numbered(config: GlmConfig, axes: tuple[Axis, ...]) -> np.ndarray:
    """A tensor of these axes in which every element is another number."""
    shape = [stored_length(axis, cut_blocks(config, TensorParallel())) for axis in axes]
    return np.arange(np.prod(shape)).reshape(shape)


def _slice(tensor: np.ndarray, axes: tuple[Axis, ...], size: int, rank: int) -> np.ndarray:
    parts = []
    for piece in cut_tensor(axes, cut_blocks(TINY, TensorParallel(size, rank))):
        rows = tensor[piece.rows.start : piece.rows.stop]
        part = rows if piece.columns is None else rows[:, piece.columns.start : piece.columns.stop]
        assert part.size == piece.num_elements
        parts.append(part)
    return np.concatenate(parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "axes", [((QUERY,), (HIDDEN,)), ((VOCAB,), (HIDDEN,)), ((QUERY,),)], ids=str
)
def test_rows_go_to_the_ranks_in_order(axes: tuple[Axis, ...], size: int) -> None:
    tensor = _numbered(TINY, axes)
    for rank, expected in enumerate(np.split(tensor, size)):
        np.testing.assert_array_equal(_slice(tensor, axes, size, rank), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axes", [((HIDDEN,), (QUERY,)), ((HIDDEN,), (FFN,))], ids=str)
def test_columns_go_to_the_ranks_in_order(axes: tuple[Axis, ...], size: int) -> None:
    tensor = _numbered(TINY, axes)
    for rank, expected in enumerate(np.split(tensor, size, axis=1)):
        np.testing.assert_array_equal(_slice(tensor, axes, size, rank), expected)


@pytest.mark.parametrize("size", SIZES)
def test_each_half_of_a_fused_gate_and_up_projection_is_cut_by_itself(size: int) -> None:
    axes = ((FFN, FFN), (HIDDEN,))
    tensor = _numbered(TINY, axes)
    gate, up = np.split(tensor, 2)
    for rank in range(size):
        expected = np.concatenate([np.split(gate, size)[rank], np.split(up, size)[rank]])
        np.testing.assert_array_equal(_slice(tensor, axes, size, rank), expected)


@pytest.mark.parametrize("size", SIZES)
def test_every_query_head_finds_its_key_value_head_on_its_rank(size: int) -> None:
    # ChatGLM's fused projection: 8 query heads, then 2 key heads, then 2 value heads.
    axes = ((QUERY, KEY_VALUE, KEY_VALUE), (HIDDEN,))
    tensor = _numbered(TINY, axes)
    query, key, value = np.split(tensor.reshape(12, 4, 6), [8, 10])
    for rank in range(size):
        sizes = partition(TINY, TensorParallel(size, rank))
        num_heads = sizes.num_attention_heads_per_partition
        num_kv_heads = sizes.num_key_value_heads_per_partition
        found = _slice(tensor, axes, size, rank).reshape(-1, 4, 6)
        own = np.split(found, [num_heads, num_heads + num_kv_heads])
        for local, head in enumerate(range(rank * num_heads, (rank + 1) * num_heads)):
            np.testing.assert_array_equal(own[0][local], query[head])
            local_kv = local // (num_heads // num_kv_heads)  # as the attention kernel pairs them
            np.testing.assert_array_equal(own[1][local_kv], key[head // 4])
            np.testing.assert_array_equal(own[2][local_kv], value[head // 4])


def test_kv_heads_are_replicated_when_there_are_fewer_than_ranks() -> None:
    axes = ((KEY_VALUE,), (HIDDEN,))
    tensor = _numbered(TINY, axes)
    heads = np.split(tensor, 2)
    for rank in range(8):
        np.testing.assert_array_equal(_slice(tensor, axes, 8, rank), heads[rank // 4])


@pytest.mark.parametrize("size", SIZES)
def test_norms_are_whole_on_every_rank(size: int) -> None:
    tensor = _numbered(TINY, ((HIDDEN,),))
    for rank in range(size):
        np.testing.assert_array_equal(_slice(tensor, ((HIDDEN,),), size, rank), tensor)


def test_the_released_9b_has_its_quarter_on_each_of_four_ranks() -> None:
    sizes = partition(GLM_9B, TensorParallel(4, 3))
    assert sizes.num_attention_heads_per_partition == 8
    assert sizes.num_key_value_heads_per_partition == 1
    assert (sizes.query_size_per_partition, sizes.kv_size_per_partition) == (1024, 128)
    assert sizes.qkv_size_per_partition == 1024 + 2 * 128
    assert sizes.intermediate_size_per_partition == 3424
    assert (sizes.vocab_size_per_partition, sizes.vocab_begin) == (37888, 3 * 37888)


def test_a_share_that_is_stored_alone_is_taken_whole() -> None:
    axes = ((FFN, FFN), (HIDDEN,))
    cuts = keep_blocks(TINY, TensorParallel(4, 2))
    assert stored_length(axes[0], cuts) == 2 * 6
    (gate, up) = cut_tensor(axes, cuts)
    assert (gate.rows, up.rows) == (range(0, 6), range(6, 12))
    assert gate.columns == range(0, 6)


def test_the_released_models_split_over_these_numbers_of_ranks() -> None:
    # 9B and 32B: 32 and 48 heads, 2 key-value heads; 151552 = 2**12 * 37.
    glm_32b = replace(GLM_9B, hidden_size=6144, intermediate_size=23040, num_attention_heads=48)
    assert [n for n in range(1, 65) if can_split(GLM_9B, n)] == [1, 2, 4, 8, 16, 32]
    assert [n for n in range(1, 65) if can_split(glm_32b, n)] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            3,
            "model_parallel 3 cannot split this model, it must divide num_attention_heads=32 and "
            "intermediate_size=13696 and vocab_size=151552; it must divide num_key_value_heads=2 "
            "or be a multiple of it: use 1, 2, 4, 8, 16 or 32.",
        ),
        (64, "model_parallel 64 cannot split this model, it must divide num_attention_heads=32: "),
    ],
)
def test_an_impossible_split_is_refused_with_what_works(size: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_split(GLM_9B, size)
    assert words in str(caught.value)
    with pytest.raises(ConfigError):
        partition(GLM_9B, TensorParallel(size, 0))


def test_an_odd_vocabulary_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match=r"it must divide vocab_size=37: use 1\."):
        check_split(replace(TINY, vocab_size=37), 2)


def test_a_multiple_that_does_not_divide_the_heads_is_refused() -> None:
    config = replace(TINY, num_attention_heads=6, num_key_value_heads=3, vocab_size=36)
    assert [n for n in range(1, 13) if can_split(config, n)] == [1, 3, 6]


@pytest.mark.parametrize(("size", "rank"), [(0, 0), (2, 2), (2, -1)])
def test_a_rank_outside_its_group_is_refused(size: int, rank: int) -> None:
    with pytest.raises(ConfigError, match="rank"):
        TensorParallel(size, rank)


def test_axes_are_called_by_the_keys_that_give_them() -> None:
    assert describe_axis((FFN, FFN)) == "2 * intermediate_size"
    assert describe_axis((QUERY, KEY_VALUE, KEY_VALUE)) == (
        "num_attention_heads * head_dim + 2 * num_key_value_heads * head_dim"
    )
