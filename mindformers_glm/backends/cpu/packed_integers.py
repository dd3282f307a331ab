"""Integers that are there already, packed as csrc/quantize.cc packs those that it makes."""

from dataclasses import dataclass

import numpy as np

from mindformers_glm.backends.cpu.library import INT_TILE_K, TILE_N
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import QuantizedRows

_LINE_BYTES = 4  # of one row in a line of a tile


@dataclass(frozen=True)
class PackedIntegers:
    """Tiles and scales of `library.quantized_shapes`, to be filled.

    group_size: 0 for 8 bits, whose rows have one scale.
    stride: 2 where gate and up tiles alternate.
    """

    tiles: np.ndarray
    scales: np.ndarray
    bits: int
    group_size: int
    stride: int

    def put(
        self, rows: QuantizedRows, row_offset: int, half: int, kept: range | None, name: str
    ) -> None:
        """Fill some rows.

        Args:
            half: 1 for rows of up projections, where gated.
            kept: columns that are meant; the others become zeros. None: all.
            name: what an error calls the matrix.
        Raises:
            CheckpointError: there are zero points, which the operators do not know.
        """
        if rows.zeros is not None:
            raise CheckpointError(
                f"{name} has zero points in some rows and none in its first ones: quantize the "
                "model again, all of a layer with them or without."
            )
        number = np.arange(row_offset, row_offset + len(rows.codes))
        tile, lane = number // TILE_N * self.stride + half, number % TILE_N
        # A row's four bytes of a line are one word.
        words = self.tiles.view(np.uint32).reshape(len(self.tiles), -1, TILE_N)
        words[tile, :, lane] = self._pack_words(rows.codes, kept)
        self.scales[tile, :, lane] = self._spread_scales(rows)

    def _pack_words(self, codes: np.ndarray, kept: range | None) -> np.ndarray:
        """uint32 [rows, lines]: without sign, padded with zero points to whole tiles."""
        num_rows, num_columns = codes.shape
        tile_k = INT_TILE_K[self.bits]
        width = -(-num_columns // tile_k) * tile_k
        middle = 2 ** (self.bits - 1)
        taken = slice(0, num_columns) if kept is None else slice(kept.start, kept.stop)
        unsigned = np.full((num_rows, width), middle, np.uint8)
        unsigned[:, taken] = codes[:, taken].view(np.uint8) + np.uint8(middle)
        if self.bits == 8:
            return unsigned.view(np.uint32)
        # Columns 0 to 3 of eight in the lower halves, 4 to 7 in the upper ones.
        halves = unsigned.reshape(num_rows, -1, 2, _LINE_BYTES)
        paired = halves[:, :, 0] | np.left_shift(halves[:, :, 1], 4)
        return paired.view(np.uint32)[:, :, 0]

    def _spread_scales(self, rows: QuantizedRows) -> np.ndarray:
        """float32 [rows, groups of the tiles]; zeros for groups of padding."""
        if self.bits == 8:
            return rows.scales
        spread = np.zeros((len(rows.codes), self.scales.shape[1]), np.float32)
        groups = rows.groups[:: self.group_size]  # the stored group of each group's first column
        spread[:, : len(groups)] = rows.scales[:, groups]
        return spread
