"""Attention against the NumPy reference: paged, mixed prefill and decode, awkward shapes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from aot_call import call

from mindformers_glm.backends.cpu import library
from tests.conftest import TOLERANCES, relative_error
from tests.kernels import reference
from tests.kernels.kernel_calls import UNTOUCHED, loaded, metadata, output, stored

DTYPES = ["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Shape:
    """Sizes of one model's attention and of its cache."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 8
    block_size: int = 4
    dtype: str = "float32"


class Case:
    """A cache with sequences in it, and one step of new rows on top.

    Sequence s has cached_lens[s] tokens in the cache before the step and query_lens[s] new rows.
    Blocks are handed out in random order; every slot that no sequence owns holds NaN.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape: Shape,
        cached_lens: list[int],
        query_lens: list[int],
        scale: float = 1.0,
    ) -> None:
        self.shape = shape
        self.seq_lens = np.add(cached_lens, query_lens).astype(np.int32)
        num_blocks = [-(-int(n) // shape.block_size) for n in self.seq_lens]
        blocks = rng.permutation(sum(num_blocks) + 2).astype(np.int32)
        tables = np.full((len(num_blocks), max(num_blocks)), -1, np.int32)
        for seq, n in enumerate(num_blocks):
            tables[seq, :n], blocks = blocks[:n], blocks[n:]
        positions = [np.arange(c, c + q) for c, q in zip(cached_lens, query_lens, strict=True)]
        slots = [self._slots(tables[s], p) for s, p in enumerate(positions)]
        self.rows = reference.Rows(
            positions=np.concatenate(positions).astype(np.int32),
            slot_mapping=np.concatenate(slots).astype(np.int32),
            query_start=np.concatenate([[0], np.cumsum(query_lens)]).astype(np.int32),
            block_tables=tables,
        )
        cache_shape = (sum(num_blocks) + 2, shape.num_kv_heads, shape.block_size, shape.head_dim)
        self.keys = np.full(cache_shape, np.nan, np.float32)
        self.values = np.full(cache_shape, np.nan, np.float32)
        for seq, cached in enumerate(cached_lens):
            for cache in (self.keys, self.values):
                old = self._slots(tables[seq], np.arange(cached))
                size = (cached, shape.num_kv_heads, shape.head_dim)
                values = scale * rng.standard_normal(size, dtype=np.float32)
                block, offset = np.divmod(old, shape.block_size)
                cache[block, :, offset] = reference.round_to(values, shape.dtype)
        width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        size = (len(self.rows.positions) + 1, width)
        self.qkv = np.float32(scale) * rng.standard_normal(size, dtype=np.float32)
        # Real RoPE tables: float32 must hold the angles of far positions too.
        inverse = 10000.0 ** (-np.arange(0, shape.rotary_dim, 2) / shape.rotary_dim)
        angles = np.arange(int(self.seq_lens.max()))[:, None] * inverse
        self.cos_sin = np.hstack([np.cos(angles), np.sin(angles)]).astype(np.float32)

    def _slots(self, table: np.ndarray, positions: np.ndarray) -> np.ndarray:
        block, offset = np.divmod(positions, self.shape.block_size)
        return table[block] * self.shape.block_size + offset

    def expected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Output, key cache and value cache of the reference."""
        keys, values = self.keys.copy(), self.values.copy()
        out = reference.attention(
            self.qkv,
            self.cos_sin,
            keys,
            values,
            self.rows,
            self.shape.num_heads,
            self.shape.dtype,
        )
        return out[:-1], keys, values

    def found(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of the kernel; one row more than real checks that it is left alone."""
        keys, values = stored(self.keys, self.shape.dtype), stored(self.values, self.shape.dtype)
        out = call(
            "glm_attention",
            self.qkv,
            self.cos_sin,
            keys,
            values,
            metadata(self.rows, self.seq_lens),
            out=output(len(self.qkv), self.shape.num_heads * self.shape.head_dim),
        )
        assert (out[-1] == UNTOUCHED).all()
        return out[:-1], loaded(keys), loaded(values)


def check(case: Case, tolerance: float = TOLERANCES["kernel_float32"]) -> None:
    """Output and both caches equal the reference; untouched slots keep their NaN."""
    (out, keys, values), (found, found_keys, found_values) = case.expected(), case.found()
    assert relative_error(found, out) < tolerance
    np.testing.assert_array_equal(found_values, values)
    # A rotated key may land on the other side of a rounding boundary: one unit of the cache type.
    unit = {"float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-10}[case.shape.dtype]
    np.testing.assert_allclose(found_keys, keys, rtol=unit, atol=1e-6)
    if case.shape.dtype != "float32":
        real = ~np.isnan(keys)
        assert np.mean(found_keys[real] != keys[real]) < 0.01


MIXES = {
    "one token": ([0], [1]),
    "prefill of a full block": ([0], [4]),
    "prefill of a block and one": ([0], [5]),
    "decode": ([33], [1]),
    "decode at a block's first slot": ([32], [1]),
    "prefill beside decode beside chunk": ([0, 40, 7], [17, 1, 9]),
    "many decodes": ([1, 2, 3, 31, 32, 33, 63, 64, 65], [1] * 9),
    "long prefill": ([0], [70]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_keys_and_values_are_written_alone_as_attention_writes_them(
    isa: str, rng: np.random.Generator, mix: tuple[list[int], list[int]], dtype: str
) -> None:
    case = Case(rng, Shape(dtype=dtype, head_dim=17), *mix)
    caches = stored(case.keys, dtype), stored(case.values, dtype)
    rows = metadata(case.rows, case.seq_lens)
    out = output(len(case.qkv), 1)
    call("glm_write_kv_cache", case.qkv, case.cos_sin, *caches, rows, out=out)
    _, *expected = case.found()
    for cache, values in zip(caches, expected, strict=True):
        np.testing.assert_array_equal(loaded(cache), values)
    assert (out == UNTOUCHED).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_attention_equals_reference(
    isa: str, rng: np.random.Generator, mix: tuple[list[int], list[int]], dtype: str
) -> None:
    check(Case(rng, Shape(dtype=dtype), *mix))


def test_the_last_of_a_million_tokens_attends_to_all_of_them(rng: np.random.Generator) -> None:
    # glm-4-9b-chat-1m's context. Beside it a short sequence, whose blocks lie anywhere among them.
    shape = Shape(num_heads=2, num_kv_heads=1, head_dim=8, block_size=32)
    case = Case(rng, shape, [2**20 - 1, 3], [1, 2], scale=2.0)
    assert case.rows.positions[0] == 1_048_575
    check(case)


@pytest.mark.parametrize("block_size", [1, 3, 16, 32])
def test_any_block_size_equals_reference(
    isa: str, rng: np.random.Generator, block_size: int
) -> None:
    check(Case(rng, Shape(block_size=block_size), [0, 47, 5], [34, 1, 2]))


@pytest.mark.parametrize("head_dim", [8, 16, 32, 40, 64, 128])
@pytest.mark.parametrize("is_partial", [True, False], ids=["half rotary", "full rotary"])
def test_any_head_size_equals_reference(
    isa: str, rng: np.random.Generator, head_dim: int, is_partial: bool
) -> None:
    shape = Shape(head_dim=head_dim, rotary_dim=head_dim // 2 if is_partial else head_dim)
    check(Case(rng, shape, [0, 20], [5, 1]))


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("group", [1, 2, 3, 16])
def test_any_group_of_heads_equals_reference(
    isa: str, rng: np.random.Generator, num_kv_heads: int, group: int
) -> None:
    shape = Shape(num_heads=num_kv_heads * group, num_kv_heads=num_kv_heads)
    check(Case(rng, shape, [0, 20], [9, 1]))


def test_a_group_of_heads_may_be_larger_than_one_pass(isa: str, rng: np.random.Generator) -> None:
    check(Case(rng, Shape(num_heads=80, num_kv_heads=1), [0, 3], [2, 1]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_positions_equal_reference(isa: str, rng: np.random.Generator, dtype: str) -> None:
    check(Case(rng, Shape(block_size=32, dtype=dtype), [30000], [2]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_stay_finite(isa: str, rng: np.random.Generator, dtype: str) -> None:
    # Scores reach thousands: float32 keeps 7 digits of them, and exp turns what is lost into a
    # relative error of that size.
    case = Case(rng, Shape(dtype=dtype), [40, 0], [1, 9], scale=60.0)
    check(case, tolerance=2e-3)


def test_float16_cache_saturates(isa: str, rng: np.random.Generator) -> None:
    case = Case(rng, Shape(dtype="float16"), [0], [3])
    case.qkv[:, -32:] *= 1e6
    out, _, values = case.found()
    assert np.isfinite(out).all()
    assert np.nanmax(np.abs(values)) == 65504


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_rows_beside_it(
    isa: str, rng: np.random.Generator, dtype: str
) -> None:
    together = Case(rng, Shape(dtype=dtype), [0, 40, 7], [17, 1, 70])
    whole, whole_keys, _ = together.found()
    for seq in range(3):
        begin, end = together.rows.query_start[seq : seq + 2]
        alone = Case(rng, together.shape, [0], [1])
        alone.keys, alone.values = together.keys, together.values
        alone.cos_sin = together.cos_sin
        alone.seq_lens = together.seq_lens[seq : seq + 1]
        # The tokens of one sequence in two steps (chunked prefill) instead of one.
        middle = (begin + end + 1) // 2
        for first, last in [(begin, middle), (middle, end)]:
            if first == last:
                continue
            alone.rows = reference.Rows(
                positions=together.rows.positions[first:last],
                slot_mapping=together.rows.slot_mapping[first:last],
                query_start=np.int32([0, last - first]),
                block_tables=together.rows.block_tables[seq : seq + 1],
            )
            alone.seq_lens = alone.rows.positions[-1:] + 1
            alone.qkv = np.vstack([together.qkv[first:last], together.qkv[-1:]])
            part, alone.keys, alone.values = alone.found()
            np.testing.assert_array_equal(part, whole[first:last])
    assert np.isfinite(whole_keys).any()


@pytest.mark.parametrize("group", [1, 3, 6, 16])
def test_a_row_alone_equals_the_same_row_among_many(
    isa: str, rng: np.random.Generator, group: int
) -> None:
    # A row alone has 1 to 16 queries of a KV head, many rows together fill whole passes.
    shape = Shape(num_heads=2 * group, head_dim=40, dtype="float16")
    together = Case(rng, shape, [90], [70])
    whole, keys, values = together.found()
    check(together)
    for row in range(70):
        alone = Case(rng, shape, [0], [1])
        alone.keys, alone.values, alone.cos_sin = keys, values, together.cos_sin
        alone.qkv = together.qkv[[row, -1]]
        alone.seq_lens = together.rows.positions[row : row + 1] + 1
        alone.rows = replace(
            together.rows,
            positions=together.rows.positions[row : row + 1],
            slot_mapping=together.rows.slot_mapping[row : row + 1],
            query_start=np.int32([0, 1]),
        )
        found, _, _ = alone.found()
        np.testing.assert_array_equal(found, whole[row : row + 1])


def test_empty_step_does_nothing(isa: str, rng: np.random.Generator) -> None:
    case = Case(rng, Shape(), [3], [1])
    empty = np.zeros(0, np.int32)
    case.rows = replace(
        case.rows,
        positions=empty,
        slot_mapping=empty,
        query_start=np.int32([0]),
        block_tables=np.zeros((0, 1), np.int32),
    )
    case.seq_lens = empty
    out, keys, _ = case.found()
    assert (out == UNTOUCHED).all()
    np.testing.assert_array_equal(keys, case.keys)


@pytest.mark.parametrize("num_threads", [2, 3, 5, 16])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_long_sequence_does_not_depend_on_the_number_of_threads(
    isa: str,
    rng: np.random.Generator,
    num_threads: int,
    num_rows: int,
    set_num_threads: Callable[[int], None],
) -> None:
    # Two KV heads on more threads: 1024 cached tokens are one split. The first row of three is the
    # last of a split, the others begin the next one.
    shape = Shape(num_heads=6, block_size=32, dtype="float16")
    case = Case(rng, shape, [3071], [num_rows])
    set_num_threads(1)
    alone, _, _ = case.found()
    set_num_threads(num_threads)
    assert library.num_threads() == num_threads
    found, _, _ = case.found()
    np.testing.assert_array_equal(found, alone)
    check(case)


def test_a_long_sequence_does_not_depend_on_the_batch(
    isa: str, rng: np.random.Generator, set_num_threads: Callable[[int], None]
) -> None:
    shape = Shape(block_size=32, dtype="float16")
    together = Case(rng, shape, [2500, 7, 1024, 0, 1023], [1, 1, 1, 9, 2])
    set_num_threads(2)
    whole, keys, values = together.found()
    set_num_threads(16)
    for seq in range(5):
        begin, end = together.rows.query_start[seq : seq + 2]
        alone = Case(rng, shape, [0], [1])
        alone.keys, alone.values, alone.cos_sin = keys, values, together.cos_sin
        alone.qkv = np.vstack([together.qkv[begin:end], together.qkv[-1:]])
        alone.seq_lens = together.seq_lens[seq : seq + 1]
        alone.rows = reference.Rows(
            positions=together.rows.positions[begin:end],
            slot_mapping=together.rows.slot_mapping[begin:end],
            query_start=np.int32([0, end - begin]),
            block_tables=together.rows.block_tables[seq : seq + 1],
        )
        found, _, _ = alone.found()
        np.testing.assert_array_equal(found, whole[begin:end])
