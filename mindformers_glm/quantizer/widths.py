"""Mixed precision: the width of each module that leaves the least error in a given size.

Errors of modules are taken to add up, as those of GPTQ's objective do to first order. Then it is a
knapsack with one choice a module, solved exactly by sizes (Kellerer, Pferschy and Pisinger 2004,
Knapsack Problems, chapter 11).
"""

import math
from collections.abc import Mapping

import numpy as np

from mindformers_glm.core.errors import ConfigError

_MOST_UNITS = 100_000  # sizes that are told apart; all that the released models have need fewer


def choose_widths(
    errors: Mapping[str, Mapping[int, float]], sizes: Mapping[str, Mapping[int, int]], budget: int
) -> dict[str, int]:
    """Choose bits for each module.

    Where sizes have no large common divisor they are rounded up, by at most a hundred thousandth
    of what there is to share out: the choice then still fits, and may leave that much a module.

    Args:
        errors: module -> bits -> error at that width.
        sizes: module -> bits -> bytes, of the same modules and widths.
        budget: bytes that all may take together.
    Raises:
        ConfigError: not even the smallest widths fit.
    """
    names = list(errors)
    least = {name: min(sizes[name].values()) for name in names}
    spare = budget - sum(least.values())
    if spare < 0:
        raise ConfigError(
            f"The narrowest widths need {sum(least.values())} bytes, and {budget} are allowed: "
            "allow more bits a weight (target_bits), or widths that are narrower."
        )
    extra = {
        name: {bits: size - least[name] for bits, size in sizes[name].items()} for name in names
    }
    unit = math.gcd(*(size for one in extra.values() for size in one.values())) or 1
    # More than all modules can use is of no use.
    spare = min(spare, sum(max(one.values()) for one in extra.values()))
    unit = max(unit, -(-spare // _MOST_UNITS))
    num_units = spare // unit
    best = np.zeros(num_units + 1)  # least error of the modules so far, by units that are used
    choices = []
    for name in names:
        bests, chosen = np.full(num_units + 1, np.inf), np.zeros(num_units + 1, np.int16)
        for bits, error in errors[name].items():
            step = -(-extra[name][bits] // unit)
            if step > num_units:
                continue
            total = best[: num_units + 1 - step] + error
            is_better = total < bests[step:]
            bests[step:][is_better] = total[is_better]
            chosen[step:][is_better] = bits
        best = bests
        choices.append(chosen)
    widths, left = {}, num_units
    for name, chosen in zip(reversed(names), reversed(choices), strict=True):
        widths[name] = int(chosen[left])
        left -= -(-extra[name][widths[name]] // unit)
    return {name: widths[name] for name in names}
