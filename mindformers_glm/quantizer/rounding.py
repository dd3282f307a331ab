"""Weights of a linear rounded to integers, by whichever scheme a recipe asks for.

Source: msModelSlim 26.1.0 (weight quantizers of llm_ptq), by its outputs, which these integers and
scales equal bit for bit: rows, groups, symmetric and asymmetric. Of W4A8_DYNAMIC the names and
shapes are its own, the choice of the two levels is ours.
"""

from collections.abc import Callable

import numpy as np

from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, MIXED, STATIC, QuantizedRows
from mindformers_glm.quantizer.gptq import GptqOptions, choose_damping, round_gptq
from mindformers_glm.quantizer.linear_input import LinearInput
from mindformers_glm.quantizer.recipe import AWQ, GPTQ, NEAREST, Recipe
from mindformers_glm.quantizer.result import QuantizedModule, StaticRange
from mindformers_glm.quantizer.sparse import round_sparse
from mindformers_glm.quantizer.weight_grid import WeightGrid

_LABEL_ENDS = {FLOAT: "A16", STATIC: "A8", DYNAMIC: "A8_DYNAMIC", MIXED: "A8_MIX"}
_INT8 = WeightGrid(8)
_CHUNK_ROWS = 64  # of a weight that are rounded at a time, in the cache
# float32 [out, in], the grid, the input (None where nothing was calibrated) -> all of the weight.
Rounder = Callable[[np.ndarray, WeightGrid, LinearInput | None], QuantizedRows]


def label_of(recipe: Recipe) -> str:
    """msModelSlim's word for the scheme: W8A8, W8A8S, W4A16, W8A8_DYNAMIC, ..."""
    if recipe.is_sparse:
        return "W8A8S"
    return f"W{recipe.weight_bits}{_LABEL_ENDS[recipe.activation]}"


def has_two_levels(recipe: Recipe) -> bool:
    """Whether groups have scales beside those of rows."""
    return label_of(recipe) == "W4A8_DYNAMIC" and recipe.group_size is not None


def check_recipe(recipe: Recipe) -> None:
    """Refuse what is no scheme, or none that this version makes.

    Raises:
        ConfigError, UnsupportedError: one sentence.
    """
    if recipe.weight_bits not in (4, 8):
        raise ConfigError(f"weights have 4 or 8 bits, not {recipe.weight_bits}.")
    if recipe.activation in (STATIC, MIXED) and (recipe.weight_bits, recipe.group_size) != (
        8,
        None,
    ):
        raise UnsupportedError(
            f"Static activations go with weights of 8 bits and a scale of each row, not with "
            f"{recipe.weight_bits} bits in groups of {recipe.group_size}: leave the groups out, or "
            "quantize activations by token (is_dynamic)."
        )
    if recipe.activation != FLOAT and not recipe.is_symmetric:
        raise UnsupportedError(
            "Integer activations go with symmetric weights only: leave w_sym True."
        )
    if recipe.is_sparse and recipe.activation != STATIC:
        raise UnsupportedError("Sparse weights (W8A8S) go with static activations only.")
    if recipe.is_per_tensor and recipe.group_size is not None:
        raise ConfigError("mm_tensor is one scale for a whole weight: leave group_size out.")
    if recipe.rounding == AWQ and recipe.anti_method:
        raise ConfigError(
            f"AWQ finds scales of its own, which those of {recipe.anti_method} are in the way of: "
            "leave anti_method out, or round by nearest or gptq."
        )
    if recipe.rounding != NEAREST and (recipe.is_sparse or recipe.is_per_tensor):
        raise UnsupportedError(
            "Sparse weights and those with one scale in all are rounded to nearest only, not by "
            f"{recipe.rounding}."
        )
    if recipe.rounding not in ROUNDERS:
        raise UnsupportedError(
            f"Weights are rounded by {', '.join(ROUNDERS)}, not by {recipe.rounding!r}."
        )


def check_columns(name: str, num_columns: int, recipe: Recipe) -> None:
    """Refuse a module that groups do not divide.

    Raises:
        UnsupportedError: they do not.
    """
    size = recipe.group_size
    if size is not None and num_columns % size:
        raise UnsupportedError(
            f"{name} has {num_columns} columns, which groups of {size} do not divide: take "
            "another group_size, or add the layer to disable_names."
        )


def round_module(
    name: str,
    weight: np.ndarray,
    bias: np.ndarray | None,
    recipe: Recipe,
    given: LinearInput | None = None,
    static: StaticRange | None = None,
) -> QuantizedModule:
    """Round one linear module.

    Args:
        name: in the checkpoint.
        weight: float32 [out, in].
        given: its input, where the recipe's rounding or activations have been calibrated.
        static: the range of its activations, of STATIC and MIXED.
    Raises:
        UnsupportedError: columns that groups do not divide.
    """
    size = recipe.group_size
    check_columns(name, weight.shape[1], recipe)
    first = second = None
    if recipe.is_sparse:
        rows = round_sparse(weight, recipe)
    elif recipe.is_per_tensor:
        rows = _round_tensor(weight, recipe)
    elif has_two_levels(recipe):
        rows, first, second = _round_two_levels(weight, recipe, given)
    else:
        grid = WeightGrid(recipe.weight_bits, size, recipe.is_symmetric)
        rows = ROUNDERS[recipe.rounding](weight, grid, given)
    return QuantizedModule(
        name=name,
        label=label_of(recipe),
        weight_bits=recipe.weight_bits,
        group_size=size,
        rows=rows,
        bias=bias,
        static=static,
        first_scales=first,
        second_scales=second,
    )


def round_nearest(
    weight: np.ndarray, grid: WeightGrid, given: LinearInput | None = None
) -> QuantizedRows:
    """Each weight by itself, over the whole range of its row or group."""
    num_rows, num_columns = weight.shape
    codes = np.empty(weight.shape, np.int8)
    found: list[tuple[np.ndarray, np.ndarray | None]] = []
    for begin in range(0, num_rows, _CHUNK_ROWS):
        rows = weight[begin : begin + _CHUNK_ROWS]
        grouped = rows.reshape(len(rows), -1, grid.group_size or num_columns)
        scales, zeros = grid.fit(grouped.min(axis=2), grouped.max(axis=2))
        found.append((scales, zeros))
        by_column = None if zeros is None else zeros[..., None]
        rounded = grid.codes(grouped, scales[..., None], by_column)
        codes[begin : begin + _CHUNK_ROWS] = rounded.reshape(rows.shape)
    zeros_of_rows = [zeros for _, zeros in found if zeros is not None]
    return QuantizedRows(
        codes,
        np.concatenate([scales for scales, _ in found]),
        np.concatenate(zeros_of_rows) if zeros_of_rows else None,
        grid.groups(num_columns),
    )


def _round_tensor(weight: np.ndarray, recipe: Recipe) -> QuantizedRows:
    """All of a weight over one range; each row gets the one scale, as readers expect it."""
    grid = WeightGrid(recipe.weight_bits, None, recipe.is_symmetric)
    rows = round_nearest(weight.reshape(1, -1), grid)

    def repeat(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, len(weight), axis=0)

    return QuantizedRows(
        rows.codes.reshape(weight.shape),
        repeat(rows.scales),
        None if rows.zeros is None else repeat(rows.zeros),
        grid.groups(weight.shape[1]),
    )


def _round_two_levels(
    weight: np.ndarray, recipe: Recipe, given: LinearInput | None
) -> tuple[QuantizedRows, np.ndarray, np.ndarray]:
    """Rows to int8, whose groups are rounded to int4: (all of it, scales of rows, of groups).

    The integers are those of the weights themselves, and not of their int8 neighbours.
    """
    first, _ = _INT8.fit(weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True))
    grid = WeightGrid(recipe.weight_bits, recipe.group_size)
    rows = ROUNDERS[recipe.rounding](weight / first, grid, given)
    second = rows.scales
    return QuantizedRows(rows.codes, first * second, rows.zeros, rows.groups), first, second


def _round_gptq(weight: np.ndarray, grid: WeightGrid, given: LinearInput | None) -> QuantizedRows:
    """By the errors of the output, columns of the largest inputs first.

    Groups stay those of neighbouring columns: no format but GPTQ's own can say others.
    """
    assert given is not None, "GPTQ calibrates"
    options = GptqOptions(has_static_groups=True, damping=choose_damping(*given.x.shape))
    return round_gptq(weight, given.hessian, grid, options).rows


# AWQ changes the layer before (float_pass.py); what it leaves is rounded to nearest.
ROUNDERS: dict[str, Rounder] = {NEAREST: round_nearest, GPTQ: _round_gptq, AWQ: round_nearest}
