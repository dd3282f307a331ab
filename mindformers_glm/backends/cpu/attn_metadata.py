"""The int32 vector that tells the attention kernel which rows belong to which sequence.

A static graph cannot take arrays of varying length, so every array has room for the largest step
of its row bucket and the header says how much of it is real. The C side (csrc/attention.cc)
parses exactly this layout:

    header       num_rows, num_seqs, max_rows, max_seqs, max_blocks_per_seq, 0, 0, 0
    positions    [max_rows]       position of each row in its sequence
    slot_mapping [max_rows]       where the row's K and V go: block * block_size + offset
    query_start  [max_seqs + 1]   rows query_start[s] .. query_start[s + 1] - 1 belong to sequence s
    seq_lens     [max_seqs]       total KV length of each sequence after this step
    block_tables [max_seqs, max_blocks_per_seq]
"""

from collections.abc import Sequence

import numpy as np

HEADER_SIZE = 8


class AttnMetadataBuffer:
    """The vector for one row bucket, allocated once and refilled every step.

    Attributes:
        array: int32 vector in the layout above; arrays keep their places from step to step.
    """

    def __init__(self, max_rows: int, max_seqs: int, max_blocks_per_seq: int) -> None:
        sizes = (
            HEADER_SIZE,
            max_rows,
            max_rows,
            max_seqs + 1,
            max_seqs,
            max_seqs * max_blocks_per_seq,
        )
        bounds = np.cumsum(sizes)
        self.array = np.zeros(int(bounds[-1]), np.int32)
        header, positions, slots, starts, lens, tables = np.split(self.array, bounds[:-1])
        header[2:5] = max_rows, max_seqs, max_blocks_per_seq
        self._header = header
        self._positions = positions
        self._slot_mapping = slots
        self._query_start = starts
        self._seq_lens = lens
        self._block_tables = tables.reshape(max_seqs, max_blocks_per_seq)

    def fill(
        self,
        positions: np.ndarray,
        slot_mapping: np.ndarray,
        query_start: np.ndarray,
        seq_lens: np.ndarray,
        block_tables: Sequence[Sequence[int]],
    ) -> None:
        """Write one step; the arrays have their real lengths (see the module docstring).

        Example: seq_lens [5, 7], 5 and 1 new rows -> query_start [0, 5, 6], positions [0..4, 6].
        """
        num_rows, num_seqs = len(positions), len(seq_lens)
        self._header[:2] = num_rows, num_seqs
        self._positions[:num_rows] = positions
        self._slot_mapping[:num_rows] = slot_mapping
        self._query_start[: num_seqs + 1] = query_start
        self._seq_lens[:num_seqs] = seq_lens
        for row, table in zip(self._block_tables, block_tables, strict=False):
            row[: len(table)] = table
