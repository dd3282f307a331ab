"""A matrix of a quantized checkpoint, or a piece of one: its rows in the one form, or as float."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import QuantizedLinear, QuantizedRows, StaticActivation
from mindformers_glm.core.segmented_linear import SegmentedLinear
from mindformers_glm.core.sharding import Piece, widen
from mindformers_glm.system.made_ahead import made_ahead

# What unpacking makes of a chunk stays in the caches: six times faster than 16 million at once.
_CHUNK_ELEMENTS = 2**19
# Chunks have a multiple of so many rows, the tiles that operators pack them into.
_WHOLE_ROWS = 16
# Of int8 codes less their zero points and of FP8 numbers, up to 448; one bound for all.
_LARGEST_CODE = 512.0


@dataclass(frozen=True)
class QuantizedView:
    """What `TensorView` is of a float tensor.

    read_tensor: maps a tensor of the checkpoint.
    release_tensors: drops the pages of all of the layer's tensors from memory.
    stored_bytes: of all of the layer's tensors.
    kept: the columns that were asked for, where there are more (`widened`).
    """

    name: str
    linear: QuantizedLinear
    piece: Piece
    read_tensor: Callable[[str], np.ndarray]
    release_tensors: Callable[[], None]
    stored_bytes: int
    kept: range | None = None

    dtype = "float32"  # of row_chunks

    @property
    def num_rows(self) -> int:
        """See TensorView."""
        return len(self.piece.rows)

    @property
    def columns(self) -> range:
        """Which columns of the matrix it has."""
        assert self.piece.columns is not None
        return self.piece.columns

    @property
    def tensors(self) -> tuple[str, ...]:
        """See TensorView."""
        return tuple(self.linear.tensors)

    @property
    def num_bytes(self) -> int:
        """See TensorView; its share of the layer's tensors."""
        rows, columns = self.linear.shape
        return self.stored_bytes * self.piece.num_elements // (rows * columns)

    def quantized_chunks(self) -> Iterator[tuple[int, QuantizedRows]]:
        """Yield (first row, rows), a bounded number of bytes at a time."""
        stored = {name: self.read_tensor(name) for name in self.linear.tensors}
        step = _CHUNK_ELEMENTS // max(len(self.columns), 1)
        step = max(step - step % _WHOLE_ROWS, _WHOLE_ROWS)

        def read(first: int) -> tuple[int, QuantizedRows]:
            rows = self.piece.rows[first : first + step]
            found = self.linear.read(stored, rows, self.columns)
            self._check_range(found)
            return first, found

        yield from made_ahead(read, range(0, self.num_rows, step))
        self.release_tensors()

    def _check_range(self, rows: QuantizedRows) -> None:
        """Refuse scales whose products with codes are beyond float32.

        Raises:
            CheckpointError: there are some.
        """
        scale = float(np.abs(rows.scales).max(initial=0))
        if scale * _LARGEST_CODE > np.finfo(np.float32).max:
            raise CheckpointError(
                f"{self.name} has a scale of {scale:.3g}, with which weights are beyond float32: "
                "the file is damaged; quantize or download the model again."
            )

    def row_chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, float32 rows): the matrix that the tool means."""
        for first, rows in self.quantized_chunks():
            yield first, rows.dequantized()

    def read_activation(self) -> StaticActivation | None:
        """How activations enter the product of these rows."""
        stored = {name: self.read_tensor(name) for name in self.linear.tensors}
        return self.linear.read_activation(stored, self.piece.rows)

    def read_activations(self) -> list[tuple[range, StaticActivation | None]]:
        """The same where parts of the columns have their own: (columns of the view, theirs)."""
        if not isinstance(self.linear, SegmentedLinear):
            return [(range(len(self.columns)), self.read_activation())]
        stored = {name: self.read_tensor(name) for name in self.linear.tensors}
        return self.linear.read_activations(stored, self.piece.rows, self.columns)

    def has_bias_in_parts(self) -> bool:
        """Whether parts of the columns add more than what takes their inputs' offsets off."""
        if not isinstance(self.linear, SegmentedLinear):
            return False
        stored = {name: self.read_tensor(name) for name in self.linear.tensors}
        return self.linear.has_bias(stored, self.piece.rows)

    def widened(self, group: int) -> "QuantizedView":
        """See TensorView."""
        own = self.columns
        wide = widen(own, self.linear.shape[1], group)
        if wide == own:
            return self
        kept = range(own.start - wide.start, own.stop - wide.start)
        return replace(self, piece=Piece(self.piece.rows, wide), kept=kept)
