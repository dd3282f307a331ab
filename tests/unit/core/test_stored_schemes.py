"""What is told of a quantized checkpoint's layers that run as float."""

from mindformers_glm.core.quantized_linear import StoredScheme
from mindformers_glm.core.stored_schemes import StoredSchemes

_ORDERED = StoredScheme(4, 64, is_reordered=True, column_order="a")
_LAYER = "decoder.layers.0"


def _stored(**schemes: StoredScheme) -> StoredSchemes:
    names = {"proj": "self_attention.linear_proj", "fc1": "mlp.linear_fc1"}
    return StoredSchemes("GPTQ", {f"{_LAYER}.{names[key]}": [schemes[key]] for key in schemes})


def test_nothing_is_told_where_all_integers_are_kept() -> None:
    assert (
        _stored(proj=_ORDERED, fc1=StoredScheme(8, 32, is_symmetric=False)).describe_float() == ""
    )


def test_layers_without_an_operator_are_counted_and_named() -> None:
    found = _stored(proj=_ORDERED, fc1=StoredScheme(2, 32)).describe_float()
    assert "1 of 2 linear layers" in found
    assert "no operator here (W2A16, groups of 32): they run" in found


def test_columns_that_lie_anywhere_are_float_on_several_ranks_where_these_cut_them() -> None:
    found = _stored(proj=_ORDERED, fc1=_ORDERED).describe_float(2)
    assert "1 of 2 linear layers" in found
    assert "here on several ranks (W4A16, groups of 64, columns reordered): they run" in found
