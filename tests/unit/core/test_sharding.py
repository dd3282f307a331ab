"""core/sharding.py: what each rank holds, against slices that NumPy cuts head by head."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import (
    can_split,
    check_split,
    cut_blocks,
    cut_columns,
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
    stored_shape,
    widen,
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
    assert sizes.intermediate_size_per_partition == 26 * 128  # of 107 groups; others have 27
    assert (sizes.vocab_size_per_partition, sizes.vocab_begin) == (37888, 3 * 37888)


@pytest.mark.parametrize("length", [13696, 23040, 1096])
@pytest.mark.parametrize("size", SIZES)
def test_equal_parts_cut_inner_columns_through_groups(length: int, size: int) -> None:
    config = replace(GLM_9B, intermediate_size=length)
    parts = [TensorParallel(size, rank, has_equal_parts=True) for rank in range(size)]
    cuts = [cut_blocks(config, part)[FFN] for part in parts]
    numbers = np.split(np.arange(length), size)
    for part, cut, expected in zip(parts, cuts, numbers, strict=True):
        np.testing.assert_array_equal(np.arange(cut.begin, cut.end), expected)
        assert partition(config, part).intermediate_size_per_partition == length // size


def test_a_share_that_is_stored_alone_is_taken_whole() -> None:
    axes = ((FFN, FFN), (HIDDEN,))
    cuts = keep_blocks(TINY, TensorParallel(4, 2))
    assert stored_length(axes[0], cuts) == 2 * 6
    (gate, up) = cut_tensor(axes, cuts)
    assert (gate.rows, up.rows) == (range(0, 6), range(6, 12))
    assert gate.columns == range(0, 6)
    # Columns are stored up to the borders of their group, which is all of them here.
    (down,) = cut_tensor(((HIDDEN,), (FFN,)), cuts)
    assert stored_shape(((HIDDEN,), (FFN,)), cuts) == (6, 24)
    assert down.columns == range(12, 18)


def test_the_released_models_split_over_these_numbers_of_ranks() -> None:
    # 9B and 32B: 32 and 48 heads, 2 key-value heads.
    glm_32b = replace(GLM_9B, hidden_size=6144, intermediate_size=23040, num_attention_heads=48)
    assert [n for n in range(1, 65) if can_split(GLM_9B, n)] == [1, 2, 4, 8, 16, 32]
    assert [n for n in range(1, 65) if can_split(glm_32b, n)] == [*(1, 2, 4, 6, 8, 12, 16, 24, 48)]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            3,
            "model_parallel 3 cannot split this model, it must divide num_attention_heads=32; it "
            "must divide num_key_value_heads=2 or be a multiple of it: use 1, 2, 4, 8, 16 or 32.",
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


def test_fewer_inner_columns_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must not be more than intermediate_size=3: use 1 or 2"):
        check_split(replace(TINY, intermediate_size=3), 4)


@pytest.mark.parametrize(
    ("vocab_size", "size", "parts"),
    [
        (151343, 2, [75672, 75671]),
        (37, 4, [10, 10, 10, 7]),
        (5, 4, [2, 2, 1, 0]),
        (3, 8, [1, 1, 1, 0, 0, 0, 0, 0]),
        (40, 8, [5] * 8),
    ],
)
def test_a_vocabulary_of_any_length_is_padded_to_equal_parts(
    vocab_size: int, size: int, parts: list[int]
) -> None:
    config = replace(TINY, vocab_size=vocab_size)
    sizes = [partition(config, TensorParallel(size, rank)) for rank in range(size)]
    assert {one.vocab_size_per_partition for one in sizes} == {parts[0]}
    pieces = [cut_blocks(config, TensorParallel(size, rank))[VOCAB] for rank in range(size)]
    assert [cut.end - cut.begin for cut in pieces] == parts
    assert [cut.begin for cut in pieces] == [sum(parts[:rank]) for rank in range(size)]


@pytest.mark.parametrize("length", [13696, 23040, 1712, 1370, 1000, 344, 257, 97, 9, 8])
@pytest.mark.parametrize("size", SIZES)
def test_inner_columns_are_cut_between_groups_where_there_are_enough(
    length: int, size: int
) -> None:
    config = replace(TINY, intermediate_size=length)
    parts = cut_columns(config, FFN, size)
    assert parts[0].start == 0
    assert parts[-1].stop == length
    assert all(len(part) > 0 for part in parts)
    assert all(one.stop == two.start for one, two in pairwise(parts))
    if length >= 128 * size:
        assert all(part.start % 128 == 0 for part in parts)
        assert max(map(len, parts)) <= length / size + 128
    assert len(parts[0]) == max(map(len, parts))  # what memory is planned for


@pytest.mark.parametrize(
    ("columns", "length", "group", "wide"),
    [
        (range(64, 128), 256, 64, range(64, 128)),
        (range(64, 128), 256, 128, range(0, 128)),
        (range(80, 160), 320, 32, range(64, 160)),
        (range(240, 320), 320, 128, range(128, 320)),
        (range(100, 130), 140, 64, range(64, 140)),
    ],
)
def test_columns_are_widened_to_whole_groups(
    columns: range, length: int, group: int, wide: range
) -> None:
    assert widen(columns, length, group) == wide


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
