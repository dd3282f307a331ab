"""Attention over a cache of int8 against the NumPy reference, on awkward shapes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from aot_call import call

from tests.conftest import relative_error
from tests.kernels import reference
from tests.kernels.kernel_calls import UNTOUCHED, metadata, output
from tests.kernels.reference import Int8Cache
from tests.kernels.test_attention import MIXES, Case, Shape
from tests.kernels.test_refusals import refused

# An element that lies between two integers may go either way, as its last bit in float32 says.
TOLERANCE = 1e-3
# Of queries and probabilities that are not rounded: 8 bits, at the ends of a context 16.
EXACT_TOLERANCE, FINE_TOLERANCE = 1e-2, 5e-4
SCALES = ["tokens", "channels"]


class Int8Case:
    """A Case of float32 whose caches are rounded to integers."""

    def __init__(self, case: Case, scales: str) -> None:
        self.case = case
        rng = np.random.default_rng(1)
        self.keys = self._quantize(case.keys, scales, rng)
        self.values = self._quantize(case.values, scales, rng)

    @staticmethod
    def _quantize(floats: np.ndarray, scales: str, rng: np.random.Generator) -> Int8Cache:
        """Slots that nobody owns hold any bytes, and NaN scales."""
        channels = None
        if scales == "channels":
            # Some clip, and zero is off the middle.
            scale = rng.uniform(0.01, 0.04, floats.shape[1::2]).astype(np.float32)
            channels = scale, rng.integers(-40, 40, scale.shape).astype(np.float32)
        integers = rng.integers(-128, 128, floats.shape).astype(np.float64)
        found = Int8Cache(integers, np.full(floats.shape[:3], np.nan, np.float32), channels)
        blocks, offsets = np.nonzero(~np.isnan(floats[:, 0, :, 0]))
        if len(blocks):
            found.store(blocks, offsets, floats[blocks, :, offsets])
        return found

    def expected(self, *, is_exact: bool = False) -> tuple[np.ndarray, Int8Cache, Int8Cache]:
        """Output and both caches of the reference."""
        keys, values = (
            replace(cache, integers=cache.integers.copy(), scales=cache.scales.copy())
            for cache in (self.keys, self.values)
        )
        case = self.case
        operands = (case.qkv, case.cos_sin, keys, values, case.rows, case.shape.num_heads)
        out = reference.attention_int8(*operands, is_exact=is_exact)
        return out[:-1], keys, values

    def found(self, symbol: str = "glm_attention") -> tuple[np.ndarray, Int8Cache, Int8Cache]:
        """The same of the kernel; one row more than real checks that it is left alone."""
        case, both = self.case, (self.keys, self.values)
        stored = [(cache.integers + 128).astype(np.uint8) for cache in both]
        scales = [cache.scales.copy() for cache in both]
        if self.keys.channels is not None:
            scales = [part.ravel() for cache in both for part in cache.channels or ()]
        out = call(
            symbol,
            case.qkv,
            case.cos_sin,
            *stored,
            metadata(case.rows, case.seq_lens),
            *scales,
            out=output(
                len(case.qkv),
                1 if "write" in symbol else case.shape.num_heads * case.shape.head_dim,
            ),
        )
        assert (out[-1] == UNTOUCHED).all()
        integers = [part.astype(np.float64) - 128 for part in stored]
        if self.keys.channels is None:
            keys, values = (Int8Cache(*parts) for parts in zip(integers, scales, strict=True))
        else:
            keys, values = (
                replace(cache, integers=part) for cache, part in zip(both, integers, strict=True)
            )
        return out[:-1], keys, values


def check(case: Case, scales: str, tolerance: float = TOLERANCE) -> None:
    """Output and both caches equal the reference; what nobody owns stays as it was."""
    ours = Int8Case(case, scales)
    (out, keys, values), (found, found_keys, found_values) = ours.expected(), ours.found()
    assert relative_error(found, out) < tolerance
    np.testing.assert_array_equal(found_values.integers, values.integers)
    np.testing.assert_array_equal(found_values.scales, values.scales)
    # A rotated key may land on the other side of a rounding boundary.
    assert np.abs(found_keys.integers - keys.integers).max() <= 1
    assert np.mean(found_keys.integers != keys.integers) < 1e-3
    np.testing.assert_allclose(found_keys.scales, keys.scales, rtol=1e-6)
    exact, *_ = ours.expected(is_exact=True)
    is_fine = max(case.seq_lens) <= 2 * reference.FINE_TOKENS
    assert relative_error(found, exact) < (FINE_TOLERANCE if is_fine else EXACT_TOLERANCE)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_attention_equals_reference(
    isa: str, rng: np.random.Generator, mix: tuple[list[int], list[int]], scales: str
) -> None:
    check(Case(rng, Shape(), *mix), scales)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_keys_and_values_are_written_alone_as_attention_writes_them(
    isa: str, rng: np.random.Generator, mix: tuple[list[int], list[int]], scales: str
) -> None:
    case = Int8Case(Case(rng, Shape(head_dim=17), *mix), scales)
    out, *found = case.found("glm_write_kv_cache")
    _, *expected = case.found()
    for cache, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(cache.integers, other.integers)
        np.testing.assert_array_equal(cache.scales, other.scales)
    assert (out == UNTOUCHED).all()


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("block_size", [1, 3, 16, 32, 100])
def test_any_block_size_equals_reference(
    isa: str, rng: np.random.Generator, block_size: int, scales: str
) -> None:
    check(Case(rng, Shape(block_size=block_size), [0, 47, 5, 130], [34, 1, 2, 3]), scales)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("head_dim", [8, 16, 32, 40, 64, 72, 128, 136, 512])
def test_any_head_size_equals_reference(
    isa: str, rng: np.random.Generator, head_dim: int, scales: str
) -> None:
    check(Case(rng, Shape(head_dim=head_dim, rotary_dim=head_dim // 2), [0, 70], [5, 1]), scales)


@pytest.mark.parametrize("num_kv_heads", [1, 4])
@pytest.mark.parametrize("group", [1, 2, 3, 5, 16, 17])
def test_any_group_of_heads_equals_reference(
    isa: str, rng: np.random.Generator, num_kv_heads: int, group: int
) -> None:
    shape = Shape(num_heads=num_kv_heads * group, num_kv_heads=num_kv_heads)
    for scales in SCALES:
        check(Case(rng, shape, [0, 20], [9, 1]), scales)


@pytest.mark.parametrize("scales", SCALES)
def test_a_group_of_heads_may_be_larger_than_one_pass(
    isa: str, rng: np.random.Generator, scales: str
) -> None:
    check(Case(rng, Shape(num_heads=80, num_kv_heads=1), [0, 3], [2, 1]), scales)


@pytest.mark.parametrize("scales", SCALES)
def test_far_positions_equal_reference(isa: str, rng: np.random.Generator, scales: str) -> None:
    check(Case(rng, Shape(block_size=32), [30000], [2]), scales)


def test_tokens_at_both_ends_of_a_context_count_finely(isa: str, rng: np.random.Generator) -> None:
    # Values between are zeros, which are exact however coarse their probabilities are. Tokens lie
    # in chunks of 64: of the last row fine ones begin at 1088, of the first at 1024.
    case = Case(rng, Shape(num_heads=6, head_dim=40, block_size=32), [1500], [70])
    ours = Int8Case(case, "tokens")
    middle = np.arange(512, 1088)
    table = case.rows.block_tables[0]
    ours.values.scales[table[middle // 32], :, middle % 32] = 0
    found, *_ = ours.found()
    exact, *_ = ours.expected(is_exact=True)
    assert relative_error(found, exact) < FINE_TOLERANCE
    # The whole context's would be as far off as this one's without its ends.
    ours = Int8Case(case, "tokens")
    (found, *_), (exact, *_) = ours.found(), ours.expected(is_exact=True)
    assert relative_error(found, exact) > FINE_TOLERANCE


def test_integers_reach_their_largest_sums(isa: str, rng: np.random.Generator) -> None:
    # 512 elements of the largest magnitude: the sum of products is 0.996 * 2^31.
    case = Case(rng, Shape(num_heads=1, num_kv_heads=1, head_dim=512, rotary_dim=2), [70], [1])
    case.qkv[:] = 3.0
    case.cos_sin[:] = 1.0, 0.0
    case.keys[~np.isnan(case.keys)] = -3.0
    ours = Int8Case(case, "channels")
    scale = np.full((1, 512), 0.001, np.float32)  # all clip
    ours.keys = replace(ours.keys, channels=(scale, np.zeros_like(scale)))
    ours.keys.integers[:] = -128
    (out, *_), (found, *_) = ours.expected(), ours.found()
    assert relative_error(found, out) < TOLERANCE


def test_heads_of_zeros_and_of_tiny_numbers_have_no_scale(
    isa: str, rng: np.random.Generator
) -> None:
    case = Case(rng, Shape(), [0], [3])
    case.qkv[0, -64:] = 0
    case.qkv[1, -64:] = 1e-35
    out, keys, values = Int8Case(case, "tokens").found()
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[:2], 0)
    block, offset = np.divmod(case.rows.slot_mapping, 4)
    np.testing.assert_array_equal(values.scales[block[:2], :, offset[:2]], 0)
    np.testing.assert_array_equal(keys.scales[block[:2], :, offset[:2]], 0)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_what_is_not_a_number_stays_one(isa: str, rng: np.random.Generator, part: str) -> None:
    case = Case(rng, Shape(num_heads=2, num_kv_heads=1), [5, 3], [1, 1])
    case.qkv[1, {"q": 3, "k": 40, "v": 50}[part]] = np.nan
    out, *_ = Int8Case(case, "tokens").found()
    heads = out.reshape(2, 2, 16)
    assert np.isfinite(heads[0]).all()
    assert np.isnan(heads[1, 0]).all()
    assert np.isnan(heads[1, 1]).all() == (part != "q")


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("group", [1, 3, 16])
@pytest.mark.parametrize("cached", [90, 1000])
def test_a_row_alone_equals_the_same_row_among_many(
    isa: str, rng: np.random.Generator, cached: int, group: int, scales: str
) -> None:
    # A row alone has 1 to 16 queries of a KV head, many rows together fill whole passes. Of the
    # later ones, tokens 512 on are fine for some and not for others.
    together = Case(rng, Shape(num_heads=2 * group, head_dim=40), [cached], [70])
    ours = Int8Case(together, scales)
    whole, ours.keys, ours.values = ours.found()
    for row in range(0, 70, 3):
        alone = Case(rng, together.shape, [0], [1])
        alone.cos_sin = together.cos_sin
        alone.qkv = together.qkv[[row, -1]]
        alone.seq_lens = together.rows.positions[row : row + 1] + 1
        alone.rows = replace(
            together.rows,
            positions=together.rows.positions[row : row + 1],
            slot_mapping=together.rows.slot_mapping[row : row + 1],
            query_start=np.int32([0, 1]),
        )
        ours.case = alone
        found, *_ = ours.found()
        np.testing.assert_array_equal(found, whole[row : row + 1])


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("num_threads", [2, 5])
def test_a_long_sequence_does_not_depend_on_the_number_of_threads(
    isa: str,
    rng: np.random.Generator,
    num_threads: int,
    scales: str,
    set_num_threads: Callable[[int], None],
) -> None:
    case = Int8Case(Case(rng, Shape(num_heads=6, block_size=32), [3071], [3]), scales)
    set_num_threads(1)
    alone, *_ = case.found()
    set_num_threads(num_threads)
    found, *_ = case.found()
    np.testing.assert_array_equal(found, alone)


def test_bad_scales_are_refused(
    rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    case = Case(rng, Shape(), [3], [1])
    stored = [np.zeros(case.keys.shape, np.uint8)] * 2
    rows = metadata(case.rows, case.seq_lens)
    scales = np.zeros(case.keys.shape[:3], np.float32)
    channels = np.ones(32, np.float32)

    def run(*more: np.ndarray, caches: list[np.ndarray] = stored) -> np.ndarray:
        operands = (case.qkv, case.cos_sin, *caches, rows, *more)
        return call("glm_attention", *operands, out=output(len(case.qkv), 64))

    run(scales, scales)
    run(channels, channels, channels, channels)
    refused(capfd, "scales belong to a cache of int8", run)
    refused(capfd, "scales belong", lambda: run(scales, scales, caches=[case.keys, case.values]))
    refused(capfd, "two operands or four", lambda: run(scales, scales, scales))
    refused(capfd, "value_scales has size 1", lambda: run(scales, scales[:1]))
    refused(capfd, "channel's offset has size 31", lambda: run(*[channels] * 3, channels[1:]))
