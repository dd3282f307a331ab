"""RMS norm and SwiGLU with the bits of the modules that msModelSlim calibrates through.

A mean of squares in another order is another last bit, which the ranges behind a norm have, too,
and all that is scaled by them. So the squares are added in the order of PyTorch's sum over the
last axis of float32, as 8 lanes of a vector register have it, whatever the machine; and exp is that
of PyTorch's vectors, where NumPy's own is a last bit off in four of ten values.
Source: ATen's native/cpu/SumKernel.cpp for the order, by what it gives; SLEEF's expf of 1.0 ulp
for what exp is computed by (sleef.org).
"""

from typing import Any

import numpy as np

_LANES = 8
_CHAINS = 4  # sums that a processor adds to by turns
# Of exp: 1 / log 2, log 2 in two parts, terms of the highest power first; below it exp is 0.
_PER_LOG2 = np.float32(1.4426950408889634)
_LOG2 = (np.float32(0.693145751953125), np.float32(1.428606765330187045e-06))
_TERMS = np.array(
    [
        0.000198527617612853646278381,
        0.00139304355252534151077271,
        0.00833336077630519866943359,
        0.0416664853692054748535156,
        0.166666671633720397949219,
        0.5,
    ],
    np.float32,
)
_SMALLEST_POWER = np.float32(-104)
_LEVELS, _STEP_BITS = 4, 4  # of sums of sums: 16 terms each, and more in rows beyond 2**23


def norm_as_the_tool(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """weight * (x / sqrt(mean(x^2) + eps)), of float32 [rows, channels]."""
    mean = sum_rows(np.square(x)) / np.float32(x.shape[1])
    factor = np.float32(1) / np.sqrt(mean + np.float32(eps))
    normed = x * factor[:, None]
    normed *= weight
    return normed


def swiglu_as_the_tool(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate / (1 + exp(-gate)) * up, of float32 [rows, columns]."""
    with np.errstate(over="ignore"):  # infinite where the quotient is 0
        return gate / (np.float32(1) + _exp(-gate)) * up


def _exp(x: np.ndarray) -> np.ndarray:
    """float32 of x's shape: 2^n times a polynomial of what is left of x."""
    x = np.maximum(x, _SMALLEST_POWER)
    power = np.rint(x * _PER_LOG2)
    rest = _add_product(power, -_LOG2[0], x)
    rest = _add_product(power, -_LOG2[1], rest)
    value = np.full_like(rest, _TERMS[0])
    for term in _TERMS[1:]:
        value = _add_product(value, rest, term)
    value = np.float32(1) + _add_product(rest * rest, value, rest)
    return np.ldexp(value, power.astype(np.int32))


def _add_product(a: np.ndarray, b: np.ndarray | np.float32, c: np.ndarray | np.float32) -> Any:
    """a * b + c, rounded once: float32."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)


def sum_rows(values: np.ndarray) -> np.ndarray:
    """float32 [rows] of float32 [rows, columns]."""
    num_rows, num_columns = values.shape
    num_vectors = num_columns // _LANES
    whole = num_vectors * _LANES
    vectors = values[:, :whole].reshape(num_rows, num_vectors, _LANES)
    num_turns = num_vectors // _CHAINS
    turns = vectors[:, : num_turns * _CHAINS].reshape(num_rows, num_turns, _CHAINS, _LANES)
    chains = _cascade(turns)
    lanes = chains[:, 0]
    for number in range(num_turns * _CHAINS, num_vectors):
        lanes += vectors[:, number]
    for chain in range(1, _CHAINS):
        lanes += chains[:, chain]
    total = np.zeros(num_rows, np.float32)
    for column in range(whole, num_columns):
        total += values[:, column]
    for lane in range(_LANES):
        total += lanes[:, lane]
    return total


def _cascade(turns: np.ndarray) -> np.ndarray:
    """float32 [rows, chains, lanes], of [rows, turns, chains, lanes]: sums of sums of 16 turns."""
    num_rows, num_turns = turns.shape[:2]
    step_bits = max(_STEP_BITS, (num_turns - 1).bit_length() // _LEVELS if num_turns else 0)
    step = 1 << step_bits
    levels = [np.zeros((num_rows, _CHAINS, _LANES), np.float32) for _ in range(_LEVELS)]
    for turn in range(num_turns):
        levels[0] += turns[:, turn]
        done = turn + 1
        if done % step:
            continue
        for level in range(1, _LEVELS):
            levels[level] += levels[level - 1]
            levels[level - 1][:] = 0
            if done & ((step - 1) << (level * step_bits)):
                break
    for level in range(1, _LEVELS):
        levels[0] += levels[level]
    return levels[0]
