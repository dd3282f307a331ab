"""What one rank's file holds of one tensor or quantized layer, and its writing.

A float tensor is the stacked pieces that the rank would have read, and what it needs for their
scales (shares.py). A quantized layer is in the one form (core/quantized_linear.py), whatever its
tool stored: the columns up to the borders of the largest groups, like those of float tensors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import BinaryIO, Protocol

import numpy as np

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantized_linear import (
    EncodedRows,
    LinearEncoder,
    QuantizedLinear,
    QuantizedRows,
    StaticActivation,
    StoredScheme,
)
from mindformers_glm.core.segmented_linear import SegmentedLinear
from mindformers_glm.core.sharding import LARGEST_GROUP, Piece, widen
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.quantized_view import QuantizedView
from mindformers_glm.weights.rules import SourceTensor
from mindformers_glm.weights.tensor_view import ROW_MAXIMA

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_CODES |= {"float64": "F64", "int8": "I8", "uint8": "U8", "int32": "I32"}
_BYTES = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class WrittenTensor:
    """A line of a safetensors header but for its place: `dtype` is the name in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * _BYTES[self.dtype]


class ShareTensor(Protocol):
    """One source of one rank."""

    @property
    def tensors(self) -> tuple[WrittenTensor, ...]:
        """Those that `write` writes, in this order."""
        ...

    def write(self, file: BinaryIO) -> None:
        """Write them, a bounded number of bytes at a time."""
        ...


def share_tensor(
    checkpoint: Checkpoint, source: SourceTensor, encoder: LinearEncoder | None
) -> ShareTensor:
    """What a rank's file holds of a source.

    Args:
        encoder: for quantized layers, of which there are none without.
    Raises:
        UnsupportedError: a quantized layer that the one form has no small tensors for.
    """
    if reason := _find_obstacle(source.linear):
        raise UnsupportedError(
            f"{checkpoint.folder} has layers {reason} ({source.name:.100}), which are not cut "
            "beforehand: give the folder itself with --auto_trans_ckpt True, and each rank reads "
            "its part."
        )
    widened = replace(source, pieces=tuple(_widen_columns(source)))
    if source.linear is None:
        return FloatShare(checkpoint, widened)
    assert encoder is not None
    columns = source.pieces[0].columns
    return QuantizedShare(checkpoint, widened, encoder, columns is None or columns.start == 0)


def _find_obstacle(linear: QuantizedLinear | None) -> str:
    if isinstance(linear, SegmentedLinear):
        return f"in parts for {len(linear.parts)} ranks"
    scheme = None if linear is None else linear.scheme
    if scheme is not None and scheme.has_float_codes and scheme.weight_bits < 8:
        return f"of {scheme.name}"
    return ""


def _widen_columns(source: SourceTensor) -> Iterator[Piece]:
    for piece in source.pieces:
        if piece.columns is None:
            yield piece
        else:
            yield Piece(piece.rows, widen(piece.columns, source.shape[1], LARGEST_GROUP))


@dataclass(frozen=True)
class FloatShare:
    """Pieces of a float tensor and, where columns are left out, its row maxima."""

    checkpoint: Checkpoint
    source: SourceTensor

    @property
    def tensors(self) -> tuple[WrittenTensor, ...]:
        """See ShareTensor."""
        shape: tuple[int, ...] = (sum(len(piece.rows) for piece in self.source.pieces),)
        if (columns := self.source.pieces[0].columns) is not None:
            shape = (*shape, len(columns))
        name = self.source.name
        own = WrittenTensor(name, _CODES[self.checkpoint.entries[name].dtype], shape)
        if len(shape) == 1 or shape[1] == self.source.shape[1]:
            return (own,)
        return own, WrittenTensor(name + ROW_MAXIMA, "F32", shape[:1])

    def write(self, file: BinaryIO) -> None:
        """See ShareTensor."""
        row_maxima = []
        for piece in self.source.pieces:
            view = self.checkpoint.view(self.source.name, piece)
            for first, rows in view.row_chunks():
                file.write(rows.reshape(-1).view(np.uint8).data)
                row_maxima.append(view.row_maxima(first, first + len(rows)))
        for maxima in row_maxima:
            if maxima is not None:
                file.write(maxima.data)


@dataclass(frozen=True)
class QuantizedShare:
    """Pieces of a quantized layer in the one form; what is written first is large, the rest not.

    has_first_columns: of ranks that share the columns and add up their results, the one whose
        quant_bias counts: the others' files have zeros, for where their columns were is not known
        to who reads them.
    """

    checkpoint: Checkpoint
    source: SourceTensor
    encoder: LinearEncoder
    has_first_columns: bool

    @property
    def layer(self) -> str:
        """Its name in the checkpoint."""
        return self.source.name.removesuffix(".weight")

    @property
    def scheme(self) -> StoredScheme:
        """How it is quantized."""
        assert self.linear.scheme is not None  # but for layers in parts
        return self.linear.scheme

    @property
    def linear(self) -> QuantizedLinear:
        """How its tool stores it."""
        assert self.source.linear is not None
        return self.source.linear

    @cached_property
    def tensors(self) -> tuple[WrittenTensor, ...]:
        """See ShareTensor; one row tells types and widths, the scheme what there is."""
        num_rows = sum(len(piece.rows) for piece in self.source.pieces)
        ((_, rows),) = self._first_row.quantized_chunks()
        encoded = self._encode(rows, self._first_row.read_activation())
        shapes = {name: (num_rows, *value.shape[1:]) for name, value in encoded.by_row.items()}
        shapes |= {name: value.shape for name, value in encoded.whole.items()}
        values = {**encoded.by_row, **encoded.whole}
        return tuple(
            WrittenTensor(f"{self.layer}.{name}", _CODES[values[name].dtype.name], shape)
            for name, shape in shapes.items()
        )

    def write(self, file: BinaryIO) -> None:
        """See ShareTensor."""
        later: dict[str, list[bytes]] = {}
        whole: Mapping[str, np.ndarray] = {}
        for piece in self.source.pieces:
            view = self._view(piece)
            static = view.read_activation()
            if static is not None and not self.has_first_columns:
                static = replace(static, quant_bias=np.zeros_like(static.quant_bias))
            for first, rows in view.quantized_chunks():
                part = None if static is None else _take(static, first, first + len(rows.codes))
                encoded = self._encode(rows, part)
                whole = encoded.whole
                for number, (name, value) in enumerate(encoded.by_row.items()):
                    octets = np.ascontiguousarray(value).tobytes()
                    if number == 0:
                        file.write(octets)
                    else:
                        later.setdefault(name, []).append(octets)
        for parts in later.values():
            for octets in parts:
                file.write(octets)
        for value in whole.values():
            file.write(value.tobytes())

    @cached_property
    def _first_row(self) -> QuantizedView:
        """A row like the others, for a rank may have none."""
        return self._view(Piece(range(1), self.source.pieces[0].columns))

    def _view(self, piece: Piece) -> QuantizedView:
        return self.checkpoint.quantized_view(self.source.name, self.linear, piece)

    def _encode(self, rows: QuantizedRows, static: StaticActivation | None) -> EncodedRows:
        return self.encoder.encode(self.source.name, self.scheme, rows, static)


def _take(static: StaticActivation, begin: int, end: int) -> StaticActivation:
    return replace(
        static, quant_bias=static.quant_bias[begin:end], deq_scale=static.deq_scale[begin:end]
    )
