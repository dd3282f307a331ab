"""How far the parts of a network on one device are from those on another, and whether too far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindformers_glm.backends.parts import LOGITS, PART_KINDS, Part, PartValues, list_parts

# Largest relative error of one rounding to nearest: 2^-p for a significand of p bits.
_UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
# What float32 sums in another order differ by: the bound of the CPU's kernels in their tests.
_FLOAT32 = 1e-5


@dataclass(frozen=True)
class PartResult:
    """One part in one step.

    Attributes:
        error: relative L2 error of the row that has the largest; infinite where a row should be
            zero or is not finite.
        row: which one; of a cache the slot.
    """

    step: str
    part: Part
    error: float
    row: int
    tolerance: float

    @property
    def is_equal(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class TokenResult:
    """Greedy tokens of the device under test, and what the reference chooses in their place.

    Attributes:
        num_close_calls: of the tokens that differ, those between whose logits lies no more than the
            error that logits may have.
    """

    found: tuple[int, ...]
    expected: tuple[int, ...]
    num_close_calls: int

    @property
    def is_equal(self) -> bool:
        """Whether they differ in close calls only."""
        pairs = zip(self.found, self.expected, strict=True)
        return sum(one != other for one, other in pairs) == self.num_close_calls


@dataclass(frozen=True)
class SelfTestReport:
    """What a self-test has found.

    Attributes:
        title: what was compared.
        results: of all steps, in the order of computing; each part with the same inputs.
        networks: logits of whole networks, each with its own results from the token ids on.
        tokens: None where a step did not come to its end.
        stopped: where and by what, else empty.
    """

    title: str
    results: Sequence[PartResult]
    networks: Sequence[PartResult]
    tokens: TokenResult | None
    stopped: str = ""

    @property
    def first_difference(self) -> PartResult | None:
        """The first part whose error is too large."""
        return next((result for result in self.results if not result.is_equal), None)

    @property
    def is_equal(self) -> bool:
        """Whether the two devices do the same."""
        has_equal_tokens = self.tokens is None or self.tokens.is_equal
        results = (*self.results, *self.networks)
        return not self.stopped and has_equal_tokens and all(one.is_equal for one in results)

    def lines(self) -> list[str]:
        """The report as text: the first difference, and the largest error of every part."""
        lines = [self.title, *self._verdict(), ""]
        lines.append(f"{'part':<28}{'largest error':>14}{'tolerance':>11}  where")
        for result in self._worst_of_each():
            mark = "" if result.is_equal else "  DIFFERS"
            lines.append(
                f"{result.part.name:<28}{result.error:>14.1e}{result.tolerance:>11.1e}  "
                f"{_place(result)}{mark}"
            )
        return lines

    def to_dict(self) -> dict[str, object]:
        """The report for a program; an infinite error is None, as JSON has no such number."""
        first = self.first_difference
        return {
            "title": self.title,
            "is_equal": self.is_equal,
            "stopped": self.stopped,
            "first_difference": first and _to_dict(first),
            "different_parts": [_to_dict(result) for result in self.results if not result.is_equal],
            "largest_errors": [_to_dict(result) for result in self._worst_of_each()],
            "logits": [_to_dict(result) for result in self.networks],
            "tokens": self.tokens and {**vars(self.tokens), "is_equal": self.tokens.is_equal},
        }

    def _verdict(self) -> list[str]:
        lines = []
        if self.stopped:
            lines.append(f"Stopped: {self.stopped}")
        if first := self.first_difference:
            num_different = sum(not result.is_equal for result in self.results)
            lines += [
                f"First difference: {first.part}, in step {first.step!r}, row {first.row}: "
                f"relative error {first.error:.1e}, tolerance {first.tolerance:.1e}.",
                f"It may mean: {PART_KINDS[first.part.name].meaning}.",
                f"Different in all: {num_different} of {len(self.results)} comparisons.",
            ]
        else:
            lines.append(f"No part differs ({len(self.results)} comparisons).")
        for result in self.networks:
            state = "equal" if result.is_equal else "DIFFERENT"
            lines.append(
                f"Logits of the whole network, step {result.step!r}: {state}, relative error "
                f"{result.error:.1e}, tolerance {result.tolerance:.1e}."
            )
        if self.tokens:
            lines.append(_describe_tokens(self.tokens))
        return lines

    def _worst_of_each(self) -> list[PartResult]:
        worst: dict[str, PartResult] = {}
        for name in PART_KINDS:
            results = [result for result in self.results if result.part.name == name]
            if results:
                worst[name] = max(results, key=lambda result: result.error)
        return list(worst.values())


def compare_parts(
    step: str, found: PartValues, expected: PartValues, dtype: str, num_layers: int
) -> list[PartResult]:
    """Compare what the device under test has made, part by part in the order of computing.

    Args:
        found, expected: of all parts, or of some.
        dtype: type of the activations under test.
    """
    results = []
    for part in list_parts(num_layers):
        if part not in expected or part not in found:
            continue
        error, row = _largest_error(found[part], expected[part])
        results.append(PartResult(step, part, error, row, _tolerance(part, dtype)))
    return results


def compare_networks(
    step: str, found: np.ndarray, expected: np.ndarray, dtype: str, num_layers: int
) -> PartResult:
    """Compare logits behind all layers, in which errors have grown."""
    error, row = _largest_error(found, expected)
    return PartResult(step, LOGITS, error, row, network_tolerance(dtype, num_layers))


def network_tolerance(dtype: str, num_layers: int) -> float:
    """What logits may differ by.

    A layer rounds about twelve times, at random, and the layers behind it may double an error.
    """
    if dtype not in _UNIT_ROUNDOFF:
        return _FLOAT32
    return 2 * _UNIT_ROUNDOFF[dtype] * math.sqrt(12 * num_layers)


def _tolerance(part: Part, dtype: str) -> float:
    num_roundings = PART_KINDS[part.name].num_roundings
    if num_roundings == 0:
        return 0.0
    return num_roundings * _UNIT_ROUNDOFF[dtype] if dtype in _UNIT_ROUNDOFF else _FLOAT32


def _largest_error(found: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """The largest relative L2 error of a row, and its number."""
    if found.shape != expected.shape:
        return math.inf, 0
    differences = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    sizes = np.linalg.norm(expected.astype(np.float64), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(differences == 0, 0.0, differences / sizes)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    row = int(errors.argmax())
    return float(errors[row]), row


def _place(result: PartResult) -> str:
    layer = "" if result.part.layer is None else f"layer {result.part.layer}, "
    return f"{layer}step {result.step!r}"


def _describe_tokens(tokens: TokenResult) -> str:
    num_equal = sum(one == other for one, other in zip(tokens.found, tokens.expected, strict=True))
    calls = f", {tokens.num_close_calls} in close calls" if tokens.num_close_calls else ""
    state = "equal" if tokens.is_equal else "DIFFERENT"
    return (
        f"Greedy tokens: {state}, {num_equal} of {len(tokens.found)} are the same{calls}: "
        f"{list(tokens.found)}"
        + ("" if tokens.found == tokens.expected else f", expected {list(tokens.expected)}")
    )


def _to_dict(result: PartResult) -> dict[str, object]:
    return {
        "step": result.step,
        "layer": result.part.layer,
        "part": result.part.name,
        "row": result.row,
        "error": result.error if math.isfinite(result.error) else None,
        "tolerance": result.tolerance,
        "is_equal": result.is_equal,
    }
