"""backends/cpu/attn_metadata.py against the layout its docstring fixes."""

import numpy as np

from mindformers_glm.backends.cpu.attn_metadata import HEADER_SIZE, AttnMetadataBuffer


def test_arrays_stand_where_the_layout_says() -> None:
    buffer = AttnMetadataBuffer(max_rows=8, max_seqs=3, max_blocks_per_seq=2)
    buffer.fill(
        positions=np.array([0, 1, 2, 3, 4, 6]),
        slot_mapping=np.array([8, 9, 10, 11, 4, 18]),
        query_start=np.array([0, 5, 6]),
        seq_lens=np.array([5, 7]),
        block_tables=[[2, 1], [0, 4]],
    )
    array = buffer.array
    assert array.dtype == np.int32
    assert array[:HEADER_SIZE].tolist() == [6, 2, 8, 3, 2, 0, 0, 0]
    assert array[8:14].tolist() == [0, 1, 2, 3, 4, 6]
    assert array[16:22].tolist() == [8, 9, 10, 11, 4, 18]
    assert array[24:27].tolist() == [0, 5, 6]
    assert array[28:30].tolist() == [5, 7]
    assert array[31:35].tolist() == [2, 1, 0, 4]
    assert len(array) == 8 + 8 + 8 + 4 + 3 + 6


def test_refilling_keeps_the_memory() -> None:
    buffer = AttnMetadataBuffer(max_rows=2, max_seqs=1, max_blocks_per_seq=1)
    before = buffer.array.ctypes.data
    one = np.array([0])
    buffer.fill(one, one, np.array([0, 1]), np.array([1]), [[0]])
    assert buffer.array.ctypes.data == before
