"""A runner without a network whose logits depend on every token that its KV cache shows it."""

import zlib
from itertools import pairwise

import numpy as np

from mindformers_glm.backends.runner import ModelBatch

_NEVER_WRITTEN = -1


class FakeRunner:
    """Keeps token ids where a network keeps K and V.

    A step writes its tokens by the slot mapping; the logits of a row are a hash of the history
    read back through the block table. So a wrong slot, block table, position or a block that
    somebody else overwrote changes the answer.
    """

    def __init__(self, vocab_size: int = 50, block_size: int = 4) -> None:
        self.vocab_size = vocab_size
        self.weights_bytes = 0
        self.mapped_weight_bytes = 0
        self.read_weight_bytes = 0
        self.workspace_bytes = 0
        self.kv_block_bytes = 1
        self.compile_s = 0.0
        self.block_size = block_size
        self.rows_per_step: list[int] = []
        self._slots = np.empty(0, np.int64)

    def allocate_kv_cache(self, num_blocks: int) -> None:
        self._slots = np.full(num_blocks * self.block_size, _NEVER_WRITTEN)

    def close(self) -> None:
        self._slots = np.empty(0, np.int64)

    def execute(self, batch: ModelBatch) -> np.ndarray:
        self.rows_per_step.append(len(batch.token_ids))
        self._check(batch)
        self._slots[batch.slot_mapping] = batch.token_ids
        logits = [self._hash(self._read_history(batch, row)) for row in batch.sample_rows]
        return np.array(logits, np.float32).reshape(-1, self.vocab_size)

    def _read_history(self, batch: ModelBatch, row: int) -> np.ndarray:
        index = int(np.searchsorted(batch.query_start, row, side="right")) - 1
        table = np.array(batch.block_tables[index])
        positions = np.arange(batch.positions[row] + 1)
        slots = table[positions // self.block_size] * self.block_size + positions % self.block_size
        history = self._slots[slots]
        assert _NEVER_WRITTEN not in history, "a row attends to tokens that were never computed"
        return history

    def _hash(self, history: np.ndarray) -> np.ndarray:
        seed = zlib.crc32(history.astype(np.int32).tobytes())
        return np.random.default_rng(seed).normal(0, 3, self.vocab_size)

    def _check(self, batch: ModelBatch) -> None:
        writers = [
            block
            for start, end in pairwise(batch.query_start)
            for block in set((batch.slot_mapping[start:end] // self.block_size).tolist())
        ]
        assert len(writers) == len(set(writers)), "two sequences write to the same block"
        assert len(set(batch.slot_mapping.tolist())) == len(batch.slot_mapping)
        query_lens = np.diff(batch.query_start)
        assert (query_lens > 0).all()
        for index, seq_len in enumerate(batch.seq_lens):
            rows = slice(batch.query_start[index], batch.query_start[index + 1])
            expected = np.arange(seq_len - query_lens[index], seq_len)
            np.testing.assert_array_equal(batch.positions[rows], expected)
            assert len(batch.block_tables[index]) * self.block_size >= seq_len


def answer(
    prompt: list[int], count: int, vocab_size: int = 50, stop: tuple[int, ...] = ()
) -> list[int]:
    """What greedy generation must give, without engine, cache or batch."""
    runner = FakeRunner(vocab_size)
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(runner._hash(np.array(tokens)).astype(np.float32))))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]
