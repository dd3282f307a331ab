"""Tensors on their way into a file: a header, and bytes that need not all be in memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindformers_glm.core.rounding import round_to_dtype
from mindformers_glm.weights.tensor_view import TensorView


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written.

    chunks: its values in order, contiguous; bfloat16 as the bits, uint16. Read once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    chunks: Iterable[np.ndarray]


def new_tensor(name: str, values: np.ndarray) -> NewTensor:
    """Values as they are, of any dtype that NumPy has."""
    return NewTensor(name, values.dtype.name, values.shape, values.nbytes, (_as_block(values),))


def round_floats(name: str, values: np.ndarray, dtype: str) -> NewTensor:
    """Values rounded to "float32", "float16" or "bfloat16"."""
    stored = _as_stored(values.astype(np.float32), dtype)
    return NewTensor(name, dtype, values.shape, stored.nbytes, (_as_block(stored),))


def copy_floats(view: TensorView, dtype: str) -> NewTensor:
    """A tensor of a checkpoint, widened or rounded to `dtype` while it is copied."""
    num_bytes = view.data.size * (4 if dtype == "float32" else 2)
    return NewTensor(view.name, dtype, view.data.shape, num_bytes, _convert(view, dtype))


def split_columns(tensor: NewTensor, names: Sequence[str]) -> list[NewTensor]:
    """As many tensors, each with as many of a matrix' columns."""
    num_rows, num_columns = tensor.shape
    rows = np.concatenate([chunk.reshape(-1, num_columns) for chunk in tensor.chunks])
    shape, num_bytes = (num_rows, num_columns // len(names)), tensor.num_bytes // len(names)
    parts = np.split(rows, len(names), axis=1)
    return [
        NewTensor(name, tensor.dtype, shape, num_bytes, (_as_block(part),))
        for name, part in zip(names, parts, strict=True)
    ]


def _convert(view: TensorView, dtype: str) -> Iterator[np.ndarray]:
    if view.data.ndim == 0:
        yield _as_stored(_as_float32(view.data, view.dtype), dtype)
        return
    for _, rows in view.row_chunks():
        if view.dtype == dtype:
            yield rows
        else:
            yield _as_block(_as_stored(_as_float32(rows, view.dtype), dtype))


def _as_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(round_to_dtype(values, dtype)).view(np.uint32)
        return (bits >> 16).astype(np.uint16)
    return values.astype(dtype)


def _as_block(values: np.ndarray) -> np.ndarray:
    # Unlike ascontiguousarray, this leaves a scalar without axes.
    return values if values.flags.c_contiguous else values.copy()
