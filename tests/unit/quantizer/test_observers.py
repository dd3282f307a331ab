"""Ranges of activations: by the words of msModelSlim's facts, and against PyTorch's observer."""

import numpy as np
import pytest

from mindformers_glm.quantizer.histogram import Histogram
from mindformers_glm.quantizer.observers import (
    observe,
    round_static,
    round_tokens,
    static_range,
    width,
)
from mindformers_glm.quantizer.recipe import AUTOMATIC, HISTOGRAM, MIN_MAX

_SAMPLES = [slice(0, 3), slice(3, 4), slice(4, 10)]


def _rows(seed: int = 0, outlier: float = 0.0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((10, 640)).astype(np.float32)
    x[7, 5] += np.float32(outlier)
    return x


def test_min_max_is_the_mean_of_the_samples_own_ranges() -> None:
    x = _rows(outlier=40.0)
    low = np.mean([x[rows].min() for rows in _SAMPLES], dtype=np.float64)
    high = np.mean([x[rows].max() for rows in _SAMPLES], dtype=np.float64)
    found = observe(x, _SAMPLES, MIN_MAX).whole
    assert found.scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert found.offset == np.rint(-low / found.scale) - 128


def test_ranges_of_earlier_samples_know_nothing_of_later_ones() -> None:
    x = _rows()
    whole = observe(x, _SAMPLES, MIN_MAX)
    assert whole.by_sample[1] == observe(x[:4], _SAMPLES[:2], MIN_MAX).whole
    assert whole.by_sample[-1] == whole.whole


@pytest.mark.parametrize("values", [(1.0, 3.0), (-3.0, -1.0), (0.0, 0.0), (-1.0, 2.0)])
def test_every_range_holds_zero_exactly(values: tuple[float, float]) -> None:
    found = static_range(*np.float32(values))
    assert -128 <= found.offset <= 127
    assert round_static(np.zeros((1, 1), np.float32), found.scale, found.offset) == 0


def test_rounded_activations_are_within_half_a_step() -> None:
    x = _rows()
    found = static_range(x.min(), x.max())
    rounded = round_static(x, found.scale, found.offset)
    assert np.abs(rounded * found.scale - x).max() <= found.scale * 0.5001
    codes, scales = round_tokens(x)
    assert (np.abs(codes * scales - x).max(axis=1) <= scales[:, 0] * 0.5001).all()
    np.testing.assert_allclose(scales[:, 0], np.abs(x).max(axis=1) / 127, rtol=1e-6)


def test_integers_of_activations_less_their_offset_are_whole_and_small() -> None:
    x = _rows(outlier=100.0) + 3
    found = observe(x, _SAMPLES, MIN_MAX).whole
    for values in (round_static(x, found.scale, found.offset), round_tokens(x)[0]):
        assert (values == np.rint(values)).all()
        assert np.abs(values).max() <= 256  # what bfloat16 holds


def test_a_token_of_zeros_stays_zero() -> None:
    codes, scales = round_tokens(np.zeros((2, 3), np.float32))
    assert not codes.any()
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("shape", ["normal", "outliers", "channels", "skewed", "few"])
def test_the_histograms_range_is_pytorchs(shape: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import HistogramObserver

    rng = np.random.default_rng(1)
    x = rng.standard_normal((50, 1024)).astype(np.float32)
    if shape == "outliers":
        x[rng.random(x.shape) < 1e-4] *= 30
    if shape == "channels":  # which no range serves beside the others
        x[:, ::40] *= 30
    if shape == "skewed":
        x = np.exp(x).astype(np.float32)
    if shape == "few":
        x = x[:1, :7]
    observer = HistogramObserver(bins=2048, dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    observer(torch.from_numpy(x))
    scale, offset = observer.calculate_qparams()
    found = static_range(*Histogram.of(x).search_range())
    assert found.scale == pytest.approx(scale.item(), rel=1e-6)
    assert found.offset == offset.item()


def test_the_histogram_of_many_samples_is_near_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import HistogramObserver

    x = np.random.default_rng(2).standard_t(4, (48, 512)).astype(np.float32)
    rows = [slice(first, first + 8) for first in range(0, 48, 8)]
    observer = HistogramObserver(bins=2048, dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    for sample in rows:
        observer(torch.from_numpy(x[sample]))
    two_bins = 2 * float(x.max() - x.min()) / 2048
    scale, _ = observer.calculate_qparams()
    assert observe(x, rows, HISTOGRAM).whole.scale * 255 == pytest.approx(
        scale.item() * 255, abs=two_bins
    )


def test_a_constant_input_has_a_range() -> None:
    assert Histogram.of(np.full((2, 2), 3.0, np.float32)).search_range() == (3.0, 3.0)


@pytest.mark.parametrize("scale", [0.1, 0.7, 8.0])
def test_the_tools_histogram_is_pytorchs_between_whole_numbers(scale: float) -> None:
    torch = pytest.importorskip("torch")
    x = scale * np.random.default_rng(3).standard_t(4, (20, 128)).astype(np.float32)
    ends = {"min": int(x.min()), "max": int(x.max())}
    expected = torch.histc(torch.from_numpy(x), 2048, **ends).numpy()
    np.testing.assert_array_equal(Histogram.of(x, is_tools=True).counts, expected)


def test_a_histogram_that_grows_keeps_its_values_where_they_are() -> None:
    rng = np.random.default_rng(4)
    samples = [scale * rng.standard_normal((8, 512)).astype(np.float32) for scale in (90, 40, 400)]
    histogram = Histogram.of(samples[0], is_tools=True)
    for sample in samples[1:]:
        histogram = histogram.with_sample(sample)
    values = np.concatenate(samples)
    low, high = np.float64(histogram.low), np.float64(histogram.high)
    assert low == values.min()
    assert values.max() <= high < values.max() + 0.01 * (high - low)
    # Values beyond the last whole number are lost, a few of 12,288.
    assert 0.995 < histogram.counts.sum() / values.size <= 1
    middles = low + (np.arange(2048) + 0.5) * (high - low) / 2048
    mean_square = (histogram.counts * middles**2).sum() / histogram.counts.sum()
    assert mean_square == pytest.approx((values.astype(np.float64) ** 2).mean(), rel=0.03)


def test_the_tools_histogram_knows_nothing_of_later_samples() -> None:
    x = _rows()
    whole = observe(x, _SAMPLES, HISTOGRAM, is_tools=True)
    assert whole.by_sample[1] == observe(x[:4], _SAMPLES[:2], HISTOGRAM, is_tools=True).whole
    assert whole.by_sample[-1] == whole.whole


@pytest.mark.parametrize(("outlier", "method"), [(0.0, HISTOGRAM), (1e3, MIN_MAX)])
def test_automatic_cuts_off_nothing_of_inputs_with_outliers(outlier: float, method: int) -> None:
    x = _rows(outlier=outlier)
    assert (width(x, _SAMPLES) > 50) == (method == MIN_MAX)
    assert observe(x, _SAMPLES, AUTOMATIC).whole == observe(x, _SAMPLES, method).whole


def test_width_looks_at_the_first_five_samples() -> None:
    x = np.ones((7, 4), np.float32)
    x[::2] = -1
    x[6] = 100
    rows = [slice(i, i + 1) for i in range(7)]
    assert width(x, rows) == pytest.approx(1, rel=0.05)
    assert width(np.zeros((2, 2), np.float32), rows[:2]) == 0


def test_a_histogram_grows_by_any_factor_in_little_memory() -> None:
    x = _rows()
    factor = np.float32(2.0**24)  # so many parts of old bins that an array of them were 32 TiB
    found = Histogram.of(x, is_tools=True).with_sample(x * factor)
    low, high = found.search_range()
    assert found.low == (x * factor).min()
    assert found.high >= (x * factor).max()
    assert found.low <= low < high <= found.high
    counts = found.counts - Histogram.of(x * factor).counts
    first = int(-found.low / (found.high - found.low) * len(counts))
    np.testing.assert_allclose(counts[first - 1 : first + 2].sum(), x.size, rtol=0.02)
