"""Integers that are there already, packed as csrc/quantize.cc packs those that it makes."""

from dataclasses import dataclass, replace

import numpy as np

from mindformers_glm.backends.cpu.tile_packing import INT_TILE_K, TILE_N
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import QuantizedRows


@dataclass(frozen=True)
class PackedIntegers:
    """Arrays of `tile_packing.quantized_shapes` and csrc/linear_int.cc, to be filled.

    group_size: 0 for 8 bits where a row has one scale.
    stride: 2 where gate and up tiles alternate.
    zeros: uint8 as scales, in the unit of the codes without sign; None: there are no zero points.
    order: int32 [columns], the column of the matrix for each of the tiles'; None: the same.
    """

    tiles: np.ndarray
    scales: np.ndarray
    bits: int
    group_size: int
    stride: int
    zeros: np.ndarray | None = None
    order: np.ndarray | None = None

    def put(
        self, rows: QuantizedRows, row_offset: int, half: int, kept: range | None, name: str
    ) -> None:
        """Fill some rows.

        Args:
            half: 1 for rows of up projections, where gated.
            kept: columns that are meant; the others become zeros. None: all.
            name: what an error calls the matrix.
        Raises:
            CheckpointError: there are zero points where `zeros` is None, or some that are no codes.
        """
        if self.order is not None:
            self.order[:], rows = rows.sorted_by_group()
        rows = replace(rows, zeros=self._check_zeros(rows.zeros, name))
        number = np.arange(row_offset, row_offset + len(rows.codes))
        tile, lane = number // TILE_N * self.stride + half, number % TILE_N
        # A row's four bytes of a line are one word.
        words = self.tiles.view(np.uint32).reshape(len(self.tiles), -1, TILE_N)
        packed = self._pack_words(rows, kept)
        if row_offset % TILE_N == 0 and len(packed) % TILE_N == 0:  # whole tiles: four times faster
            whole = packed.reshape(-1, TILE_N, packed.shape[1])
            words[tile[0] : tile[-1] + 1 : self.stride] = whole.transpose(0, 2, 1)
        else:
            words[tile, :, lane] = packed
        self.scales[tile, :, lane] = self._spread(rows.scales, rows.groups)
        if self.zeros is not None:
            zeros = np.zeros_like(rows.scales) if rows.zeros is None else rows.zeros
            self.zeros[tile, :, lane] = self._spread(zeros + self._middle, rows.groups)

    @property
    def _middle(self) -> int:
        """What is added to codes that they have no sign."""
        return int(2 ** (self.bits - 1))

    def _check_zeros(self, zeros: np.ndarray | None, name: str) -> np.ndarray | None:
        if zeros is None:
            return None
        if self.zeros is None:
            raise CheckpointError(
                f"{name} has zero points in some rows and none in its first ones: quantize the "
                "model again, all of a layer with them or without."
            )
        wrong = zeros[(zeros < -self._middle) | (zeros >= self._middle) | (zeros != np.rint(zeros))]
        if wrong.size:
            raise CheckpointError(
                f"{name} has the zero point {wrong[0]:g}, expected a whole number from "
                f"{-self._middle} to {self._middle - 1}: the file is damaged or was written by a "
                "broken tool; quantize or download the model again."
            )
        return zeros

    def _pack_words(self, rows: QuantizedRows, kept: range | None) -> np.ndarray:
        """uint32 [rows, lines]: without sign, padded to whole tiles; zeros where not kept."""
        num_rows, num_columns = rows.codes.shape
        tile_k = INT_TILE_K[self.bits]
        width = -(-num_columns // tile_k) * tile_k
        taken = slice(0, num_columns) if kept is None else slice(kept.start, kept.stop)
        unsigned = np.empty((num_rows, width), np.uint8)
        unsigned[:, num_columns:] = self._middle
        if kept is not None:
            unsigned[:, :num_columns] = self._middle
        if rows.zeros is not None and kept is not None:
            by_column = rows.zeros[:, rows.groups if rows.zeros.shape[1] > 1 else [0] * num_columns]
            unsigned[:, :num_columns] = by_column + self._middle
        codes = rows.codes[:, taken].view(np.uint8)
        np.add(codes, np.uint8(self._middle), out=unsigned[:, taken])
        words = unsigned.view(np.uint32)
        if self.bits == 8:
            return words
        # Columns 0 to 3 of eight in the lower halves of bytes, 4 to 7 in the upper ones.
        return words[:, 0::2] | words[:, 1::2] << np.uint32(4)

    def _spread(self, values: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """[rows, stored groups] as [rows, groups of the tiles]; zeros for groups of padding."""
        if self.group_size == 0:
            return values
        spread = np.zeros((len(values), self.scales.shape[1]), values.dtype)
        firsts = groups[:: self.group_size]  # the stored group of each group's first column
        spread[:, : len(firsts)] = values[:, firsts]
        return spread
