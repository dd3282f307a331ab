"""What a self-test's report calls equal, what it names first, and what it writes."""

import json
import math

import numpy as np
import pytest

from mindformers_glm.backends.part_report import (
    PartResult,
    SelfTestReport,
    TokenResult,
    compare_parts,
    network_tolerance,
)
from mindformers_glm.backends.parts import (
    LAYER_PARTS,
    LOGITS,
    PART_KINDS,
    Part,
    PartValues,
    list_parts,
)

NORM, CACHE = Part("input_layernorm", 1), Part("key_cache", 1)


def make_parts(num_layers: int = 2) -> PartValues:
    rng = np.random.default_rng(0)
    return {
        part: rng.standard_normal((100, 8)).astype(np.float32) for part in list_parts(num_layers)
    }


def compare(found: PartValues, expected: PartValues, dtype: str = "float16") -> list[PartResult]:
    return compare_parts("prompts", found, expected, dtype, 2)


def report_of(results: list[PartResult], **others: object) -> SelfTestReport:
    return SelfTestReport("Ascend against CPU", results, [], **{"tokens": None} | others)  # type: ignore[arg-type]


def test_equal_parts_have_no_difference() -> None:
    report = report_of(compare(make_parts(), make_parts()))
    assert report.is_equal
    assert report.first_difference is None
    assert len(report.results) == 3 + 2 * len(LAYER_PARTS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_rounding_of_every_value_is_within_the_tolerance(dtype: str) -> None:
    roundoff = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    expected = {part: value for part, value in make_parts().items() if "cache" not in part.name}
    found = {part: value * np.float32(1 + roundoff) for part, value in expected.items()}
    assert all(result.error <= 1.001 * roundoff for result in compare(found, expected, dtype))
    found = {part: value * np.float32(1 + 0.99 * roundoff) for part, value in expected.items()}
    assert report_of(compare(found, expected, dtype)).is_equal


def test_cache_must_hold_the_same_bits() -> None:
    expected, found = make_parts(), make_parts()
    found[CACHE][3, 0] = np.nextafter(found[CACHE][3, 0], np.float32(9))
    report = report_of(compare(found, expected))
    assert report.first_difference is not None
    assert (report.first_difference.part, report.first_difference.row) == (CACHE, 3)


def test_one_wrong_row_among_many_is_found() -> None:
    expected, found = make_parts(), make_parts()
    found[NORM][41] *= 1.01  # a thousandth of the whole
    (different,) = [result for result in compare(found, expected) if not result.is_equal]
    assert (different.part, different.row) == (NORM, 41)
    assert different.error == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_value_that_is_not_finite_is_an_infinite_error(value: float) -> None:
    expected, found = make_parts(), make_parts()
    found[NORM][2, 5] = value
    first = report_of(compare(found, expected)).first_difference
    assert first is not None
    assert (first.error, first.row) == (math.inf, 2)


def test_row_that_should_be_zero_is_an_infinite_error() -> None:
    expected, found = make_parts(), make_parts()
    expected[CACHE][7] = found[CACHE][6] = expected[CACHE][6] = 0
    first = report_of(compare(found, expected)).first_difference
    assert first is not None
    assert (first.error, first.row) == (math.inf, 7)


def test_another_shape_is_an_infinite_error() -> None:
    found = make_parts() | {NORM: np.zeros((100, 4), np.float32)}
    first = report_of(compare(found, make_parts())).first_difference
    assert first is not None
    assert (first.part, first.error) == (NORM, math.inf)


def test_first_difference_is_the_first_that_is_computed() -> None:
    expected = dict(reversed(make_parts().items()))
    found = {part: value * 2 for part, value in expected.items()}
    assert str(report_of(compare(found, expected)).first_difference.part) == "embedding"  # type: ignore[union-attr]


def test_text_names_the_difference_and_every_part_with_its_largest_error() -> None:
    expected, found = make_parts(), make_parts()
    found[NORM][41] *= 1.5
    lines = report_of(compare(found, expected)).lines()
    assert lines[1] == (
        "First difference: layer 1, input_layernorm, in step 'prompts', row 41: relative error "
        "5.0e-01, tolerance 4.9e-04."
    )
    assert lines[2].startswith("It may mean: another eps")
    assert lines[3] == "Different in all: 1 of 41 comparisons."
    assert lines[-len(PART_KINDS) - 1].split() == ["part", "largest", "error", "tolerance", "where"]
    rows = [line.split("  ")[0] for line in lines[-len(PART_KINDS) :]]
    assert rows == list(PART_KINDS)
    assert [line for line in lines if line.endswith("DIFFERS")] == [
        f"{'input_layernorm':<28}       5.0e-01    4.9e-04  layer 1, step 'prompts'  DIFFERS"
    ]


def test_json_has_the_same_and_no_infinite_number() -> None:
    found = make_parts() | {NORM: np.full((100, 8), np.nan, np.float32)}
    tokens = TokenResult((1, 2), (1, 3), num_close_calls=1)
    report = report_of(compare(found, make_parts()), tokens=tokens)
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert written["is_equal"] is False
    assert written["first_difference"] == written["different_parts"][0]
    assert written["first_difference"]["part"] == "input_layernorm"
    assert written["first_difference"]["layer"] == 1
    assert written["first_difference"]["error"] is None
    assert written["tokens"]["is_equal"] is True


def test_a_stop_is_a_difference() -> None:
    results = compare(make_parts(), make_parts())
    report = report_of(results, stopped="step 'prompts', behind layer 0, rotary key: Error: x")
    assert not report.is_equal
    assert report.lines()[1] == "Stopped: step 'prompts', behind layer 0, rotary key: Error: x"


@pytest.mark.parametrize(("num_close_calls", "is_equal"), [(0, False), (1, True)])
def test_tokens_may_differ_in_close_calls_only(num_close_calls: int, is_equal: bool) -> None:
    tokens = TokenResult((5, 6, 7), (5, 9, 7), num_close_calls)
    assert report_of([], tokens=tokens).is_equal is is_equal
    text = "\n".join(report_of([], tokens=tokens).lines())
    assert "2 of 3 are the same" in text
    assert "expected [5, 9, 7]" in text


def test_logits_may_differ_more_the_deeper_a_network_is() -> None:
    assert network_tolerance("float32", 40) == 1e-5
    assert network_tolerance("float16", 40) == pytest.approx(2 * 2**-11 * math.sqrt(480))
    wrong = PartResult("prompts", LOGITS, 1.0, 0, network_tolerance("bfloat16", 40))
    assert not SelfTestReport("", [], [wrong], None).is_equal
