"""Mixed precision beside all choices there are."""

import itertools

import numpy as np
import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.quantizer.widths import choose_widths

BITS = (4, 8, 16)


def _modules(seed: int, unit: int) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, int]]]:
    rng = np.random.default_rng(seed)
    names = [f"layers.{number}.mlp" for number in range(6)]
    errors = {
        name: dict(zip(BITS, -np.sort(-rng.exponential(size=3)), strict=True)) for name in names
    }
    weights = {name: int(rng.integers(1, 9)) * unit for name in names}
    return errors, {name: {bits: weights[name] * bits for bits in BITS} for name in names}


@pytest.mark.parametrize("seed", range(8))
def test_no_other_choice_that_fits_has_less_error(seed: int) -> None:
    errors, sizes = _modules(seed, unit=4096)
    smallest, largest = (sum(each[bits] for each in sizes.values()) for bits in (4, 16))
    budget = smallest + (largest - smallest) * seed // 7
    widths = choose_widths(errors, sizes, budget)
    assert sum(sizes[name][bits] for name, bits in widths.items()) <= budget
    expected = min(
        sum(errors[name][bits] for name, bits in zip(errors, choice, strict=True))
        for choice in itertools.product(BITS, repeat=len(errors))
        if sum(sizes[name][bits] for name, bits in zip(errors, choice, strict=True)) <= budget
    )
    assert sum(errors[name][bits] for name, bits in widths.items()) == pytest.approx(expected)


def test_sizes_without_a_common_divisor_still_fit() -> None:
    errors, sizes = _modules(1, unit=1_000_003)
    sizes["layers.0.mlp"][8] += 1
    budget = sum(each[8] for each in sizes.values())
    widths = choose_widths(errors, sizes, budget)
    assert sum(sizes[name][bits] for name, bits in widths.items()) <= budget


def test_what_can_not_fit_is_told() -> None:
    errors, sizes = _modules(0, unit=1)
    with pytest.raises(ConfigError, match="target_bits"):
        choose_widths(errors, sizes, sum(each[4] for each in sizes.values()) - 1)


def test_all_are_wide_where_there_is_room() -> None:
    errors, sizes = _modules(0, unit=10)
    assert set(choose_widths(errors, sizes, 10**9).values()) == {16}
