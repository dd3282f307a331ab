"""core/quantization_scheme.py: which schemes there are and what they take."""

from dataclasses import replace
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantization_scheme import (
    SCHEMES,
    keep_integers,
    on_ranks,
    read_scheme,
)
from mindformers_glm.core.quantized_linear import (
    DYNAMIC,
    MIXED,
    STATIC,
    StaticInput,
    StoredScheme,
)


def test_without_a_name_weights_stay_float() -> None:
    assert read_scheme(None, None) is None


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_found_by_its_name(name: str) -> None:
    scheme = read_scheme(name, None)
    assert scheme is not None
    digits = f"w{scheme.weight_bits}a{scheme.activation_bits}"
    assert name.startswith(digits)


@pytest.mark.parametrize("name", ["int8", "W8A16", "", "ascend", 8, ["w8a16"]])
def test_another_name_is_refused_with_those_that_exist(name: Any) -> None:
    names = "w8a16, w8a8_dynamic, w4a16, w4a8_dynamic"
    with pytest.raises(ConfigError, match=f"quantization must be one of {names}, got"):
        read_scheme(name, None)


@pytest.mark.parametrize("name", ["w4a16", "w4a8_dynamic"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int4_takes_a_group_size(name: str, group_size: int) -> None:
    scheme = read_scheme(name, group_size)
    assert scheme is not None
    assert scheme.group_size == group_size


@pytest.mark.parametrize("group_size", [0, -1, 1, 16, 256, "64", True, 32.5])
def test_other_group_sizes_are_refused(group_size: Any) -> None:
    with pytest.raises(ConfigError, match="quantization_group_size must be one of 32, 64, 128"):
        read_scheme("w4a16", group_size)


@pytest.mark.parametrize("name", ["w8a16", "w8a8_dynamic", None])
def test_a_group_size_without_groups_is_refused(name: str | None) -> None:
    with pytest.raises(ConfigError, match="goes with quantization w4a16, w4a8_dynamic only"):
        read_scheme(name, 64)


def test_bytes_count_weights_and_scales() -> None:
    int8, int4 = SCHEMES["w8a16"], SCHEMES["w4a16"]
    assert int8.count_bytes(10, 256) == 10 * 256 + 10 * 4
    assert int4.count_bytes(10, 256) == 10 * 128 + 10 * 2 * 4
    assert int4.count_bytes(10, 100) == 10 * 50 + 10 * 4
    zeros = replace(int4, has_zeros=True, is_reordered=True)
    assert zeros.count_bytes(10, 256) == 10 * 128 + 10 * 2 * (4 + 1) + 256 * 4
    assert replace(int8, group_size=32).count_bytes(10, 256) == 10 * 256 + 10 * 8 * 4


_INT8, _INT4 = StoredScheme(8), StoredScheme(4, 64)
_INPUT = StaticInput(0.5, -3.0, contains_bias=True)
_ORDERED = StoredScheme(4, 64, is_reordered=True, column_order="a")


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        ([_INT8], ("w8a16", None)),
        ([StoredScheme(4)], ("w4a16", 128)),
        ([StoredScheme(4, 32)], ("w4a16", 32)),
        ([StoredScheme(4, 96)], ("w4a16", 32)),
        ([StoredScheme(4, 256)], ("w4a16", 128)),
        ([StoredScheme(4, 16)], None),
        ([StoredScheme(8, 128)], ("w8a16", 128)),
        ([StoredScheme(8, 320)], ("w8a16", 64)),
        ([StoredScheme(8, 48)], None),
        ([StoredScheme(2, 64)], None),
        ([StoredScheme(4, 64, is_symmetric=False)], ("w4a16", 64, "zeros")),
        ([StoredScheme(8, is_symmetric=False)], ("w8a16", None, "zeros")),
        ([StoredScheme(8, is_symmetric=False, has_far_zeros=True)], None),
        ([StoredScheme(4, 64, is_reordered=True)], None),
        ([_ORDERED], ("w4a16", 64, "order")),
        ([_ORDERED, replace(_ORDERED, group_size=32)], ("w4a16", 32, "order")),
        ([_ORDERED, replace(_ORDERED, column_order="b")], None),
        ([_ORDERED, _INT4], None),
        ([replace(_ORDERED, is_symmetric=False)], ("w4a16", 64, "zeros", "order")),
        ([StoredScheme(8, has_float_codes=True)], None),
        ([StoredScheme(8, activation=STATIC)], None),
        ([StoredScheme(8, activation=DYNAMIC)], ("w8a8_token", None)),
        ([StoredScheme(8, 64, activation=DYNAMIC)], None),
        ([StoredScheme(8, activation=DYNAMIC, is_symmetric=False)], None),
        ([StoredScheme(4, 64, activation=DYNAMIC)], ("w4a8_token", 64)),
        ([StoredScheme(4, activation=DYNAMIC)], ("w4a8_token", 128)),
        ([StoredScheme(4, 64, activation=STATIC, static_input=_INPUT)], None),
        ([StoredScheme(8, activation=STATIC, static_input=_INPUT)] * 3, ("w8a8_static", None)),
        ([StoredScheme(8, activation=MIXED, static_input=_INPUT)], ("w8a8_mixed", None)),
        ([_INT8, StoredScheme(8, activation=DYNAMIC)], None),
        ([None, StoredScheme(8, activation=DYNAMIC)], None),
        ([_INT4, StoredScheme(4, 32), StoredScheme(4)], ("w4a16", 32)),
        ([_INT4, StoredScheme(4, 32, is_symmetric=False)], ("w4a16", 32, "zeros")),
        ([StoredScheme(4, 32), StoredScheme(4, is_symmetric=False)], ("w4a16", 32, "zeros")),
        ([_INT8, StoredScheme(8, 64)], ("w8a16", 64)),
        ([_INT4, _INT8, _INT4], None),
        ([None, _INT4, _INT4], None),
        ([None], None),
    ],
    ids=str,
)
def test_operators_that_take_a_checkpoints_integers_as_they_are(
    stored: list[StoredScheme | None], kept: tuple[str | int | None, ...] | None
) -> None:
    found = keep_integers(stored)
    if found is None:
        assert kept is None
        return
    ends = ("zeros",) * found.has_zeros + ("order",) * found.is_reordered
    assert (found.name, found.group_size, *ends) == kept


def test_columns_that_lie_anywhere_are_float_where_ranks_cut_them() -> None:
    ordered, plain = keep_integers([_ORDERED]), keep_integers([_INT4])
    for layer in ("decoder.layers.0.self_attention.linear_proj", "decoder.layers.1.mlp.linear_fc2"):
        assert on_ranks(ordered, layer, 2) is None
        assert on_ranks(ordered, layer, 1) == ordered
        assert on_ranks(plain, layer, 2) == plain
        assert on_ranks(None, layer, 2) is None
    for layer in ("decoder.layers.0.self_attention.linear_qkv", "decoder.layers.1.mlp.linear_fc1"):
        assert on_ranks(ordered, layer, 2) == ordered


@pytest.mark.parametrize(
    "other", [StaticInput(0.25, -3.0, True), StaticInput(0.5, 3.0, True)], ids=["scale", "offset"]
)
def test_matrices_that_round_their_activations_otherwise_run_as_float(other: StaticInput) -> None:
    stored = [
        StoredScheme(8, activation=STATIC, static_input=found) for found in (_INPUT, _INPUT, other)
    ]
    assert keep_integers(stored[:2]) is not None
    assert keep_integers(stored) is None


@pytest.mark.parametrize("contains_bias", [True, False])
def test_a_bias_that_is_among_the_integers_is_told(contains_bias: bool) -> None:
    given = StaticInput(0.5, 0.0, contains_bias)
    found = keep_integers([StoredScheme(8, activation=STATIC, static_input=given)])
    assert found is not None
    assert found.has_folded_bias is contains_bias


def test_bytes_count_what_a_given_scale_adds() -> None:
    static, mixed = (
        keep_integers([StoredScheme(8, activation=kind, static_input=_INPUT)])
        for kind in (STATIC, MIXED)
    )
    assert static is not None
    assert mixed is not None
    assert static.count_bytes(10, 256) == 10 * 256 + 10 * (4 + 4) + 8
    assert mixed.count_bytes(10, 256) == 10 * 256 + 10 * (4 + 4 + 4) + 8


def test_scales_of_a_row_do_not_keep_columns_together() -> None:
    by_token = keep_integers([StoredScheme(8, activation=DYNAMIC)])
    int4 = keep_integers([StoredScheme(4, 64, activation=DYNAMIC)])
    assert by_token is not None
    assert int4 is not None
    assert (by_token.activation_group, int4.activation_group) == (1, 64)
    assert SCHEMES["w8a8_dynamic"].activation_group == 128
