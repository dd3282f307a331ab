"""What every reader asks of values before it uses them."""

import hashlib
import re
from collections.abc import Iterable, Mapping

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import (
    StaticInput,
    StoredTensors,
    TensorSpec,
    sort_columns,
)

_NAME_LENGTH = 16


def as_scales(values: np.ndarray, name: str) -> np.ndarray:
    """float32 [rows, groups] of finite numbers above zero.

    Raises:
        CheckpointError: they are not.
    """
    scales = values.astype(np.float32)
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise CheckpointError(
            f"{name} holds a scale that is not a positive number: the file is damaged or was "
            "written by a broken tool; quantize or download the model again."
        )
    return scales


def as_deq_scales(values: np.ndarray, name: str) -> np.ndarray:
    """float32 [rows]; of int64, which float16 models have, the bits in the lower half.

    Raises:
        CheckpointError: as `as_scales`.
    """
    if values.dtype == np.int64:
        values = values.astype(np.uint32).view(np.float32)
    return as_scales(values, name)


def as_offset(values: np.ndarray, name: str) -> float:
    """The one offset of integer activations.

    Raises:
        CheckpointError: it is not a whole number that int8 has.
    """
    return float(as_offsets(values.reshape(-1)[:1], name)[0])


def as_offsets(values: np.ndarray, name: str) -> np.ndarray:
    """float32 of whole numbers that int8 has, as tools write the offsets of activations.

    Raises:
        CheckpointError: they are not.
    """
    offsets = values.astype(np.float32)
    wrong = ~((offsets >= -128) & (offsets <= 127) & (offsets == np.rint(offsets)))
    if wrong.any():
        raise CheckpointError(
            f"{name} holds {offsets[wrong][0]}, expected a whole number from -128 to 127: the "
            "file is damaged or was written by a broken tool; quantize or download the model again."
        )
    return offsets


def check_int4(codes: np.ndarray, name: str) -> None:
    """Check that int8 codes, a byte each, are those of int4.

    Raises:
        CheckpointError: they are not.
    """
    if codes.size and not -8 <= codes.min() <= codes.max() <= 7:
        raise CheckpointError(
            f"{name} holds more than int4, which the folder says it is: download it again."
        )


def as_zeros(values: np.ndarray, name: str) -> np.ndarray | None:
    """float32 of whole numbers; None where all are zero.

    Raises:
        CheckpointError: they are not finite.
    """
    zeros = values.astype(np.float32)
    if not np.isfinite(zeros).all():
        raise CheckpointError(f"{name} holds zero points that are not numbers: download it again.")
    return zeros if zeros.any() else None


def check_patterns(patterns: Iterable[str], where: str) -> None:
    """Check that regular expressions of a folder are some.

    Raises:
        CheckpointError: one is not.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as problem:
            raise CheckpointError(
                f"{where} names layers by {pattern!r:.60}, which is no regular expression "
                f"({problem}): download the file again."
            ) from None


def count_groups(layer: str, num_columns: int, group_size: int | None) -> int:
    """Groups in a row.

    Raises:
        CheckpointError: the last one would be shorter.
    """
    if group_size is None:
        return 1
    if num_columns % group_size:
        raise CheckpointError(
            f"{layer} has {num_columns} columns, which groups of {group_size} do not divide: the "
            "quantization's settings are of another model."
        )
    return num_columns // group_size


def group_of_columns(columns: range, group_size: int | None) -> tuple[slice, np.ndarray]:
    """Which groups consecutive columns need, and the place of each column's among them."""
    if group_size is None:
        return slice(0, 1), np.zeros(len(columns), np.intp)
    first, last = columns.start // group_size, -(-columns.stop // group_size)
    groups = np.arange(columns.start, columns.stop) // group_size - first
    return slice(first, last), groups


def read_order(order: np.ndarray | None, group_size: int | None) -> tuple[bool, str]:
    """What StoredScheme says of an order of columns: `is_reordered` and `column_order`.

    Args:
        order: int [columns], the group of each; None: there is no such tensor.
        group_size: None: all columns are one group.
    """
    if order is None:
        return False, ""
    in_order = np.arange(order.size) // (group_size or max(order.size, 1))
    if np.array_equal(order, in_order):
        return False, ""
    return True, _name_order(order, group_size) if group_size else ""


def _name_order(order: np.ndarray, group_size: int) -> str:
    """A name of the order; empty where groups have not `group_size` columns each."""
    if order.size == 0 or order.min() < 0 or order.max() >= order.size:
        return ""
    if (np.bincount(order) != group_size).any():
        return ""
    places = sort_columns(order).astype(np.int32)
    return hashlib.sha256(places.tobytes()).hexdigest()[:_NAME_LENGTH]


def are_codes(zeros: np.ndarray, bits: int) -> bool:
    """Whether zero points, in the unit of signed codes, are such codes themselves."""
    middle = 2 ** (bits - 1)
    return bool(((zeros >= -middle) & (zeros < middle) & (zeros == np.rint(zeros))).all())


def peek(source: StoredTensors, name: str, specs: Mapping[str, TensorSpec]) -> np.ndarray | None:
    """A tensor of which a few values tell more than its header; None unless it is as it must be."""
    entry, spec = source.entries.get(name), specs.get(name)
    if (
        entry is None
        or spec is None
        or (entry.shape, entry.dtype in spec.dtypes) != (spec.shape, True)
    ):
        return None
    return source.array(name)


def peek_static_input(
    source: StoredTensors,
    specs: Mapping[str, TensorSpec],
    scale_name: str,
    offset_name: str,
    *,
    contains_bias: bool,
) -> StaticInput | None:
    """How a layer's activations are rounded; None where a tensor is not what it must be.

    Args:
        offset_name: of a tensor that need not be there.
    Raises:
        CheckpointError: the scale is no positive number, or the offset none that a code has.
    """
    scale = peek(source, scale_name, specs)
    if scale is None:
        return None
    offset = peek(source, offset_name, specs) if offset_name in specs else np.zeros(1)
    if offset is None:
        return None
    step = as_scales(scale, scale_name).reshape(-1)[0]
    return StaticInput(float(step), as_offset(offset, offset_name), contains_bias)


def groups_by_order(
    order: np.ndarray, name: str, columns: range, num_groups: int
) -> tuple[slice, np.ndarray]:
    """As `group_of_columns`, where a tensor names each column's group.

    Raises:
        CheckpointError: it names one that there is not.
    """
    if order.size and not 0 <= order.min() <= order.max() < num_groups:
        wrong = int(order.min() if order.min() < 0 else order.max())
        raise CheckpointError(
            f"{name} names group {wrong}, expected 0 to {num_groups - 1}: the file is damaged or "
            "its group_size is of another model."
        )
    return slice(0, num_groups), order[columns.start : columns.stop].astype(np.intp)
