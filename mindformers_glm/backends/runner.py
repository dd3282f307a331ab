"""What the engine asks of a model on a device."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mindformers_glm.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class ModelBatch:
    """One step: the new tokens of all sequences, packed on axis 0.

    Example: block_size 4, a sequence of 5 prompt tokens in blocks [0, 1] and one at its 7th token
    in blocks [3, 2]:
        positions [0 1 2 3 4 | 6], slot_mapping [0 1 2 3 4 | 10], query_start [0, 5, 6],
        seq_lens [5, 7], block_tables [[0, 1], [3, 2]], sample_rows [4, 5],
        is_prompt [1 1 1 1 1 | 0].

    Attributes:
        token_ids: int32 [num_rows].
        positions: int32 [num_rows], position of each token in its sequence.
        slot_mapping: int32 [num_rows], where K and V go: block * block_size + offset.
        query_start: int32 [num_seqs + 1]; sequence s has rows query_start[s]..query_start[s + 1]-1.
        seq_lens: int32 [num_seqs], total KV length of each sequence after this step.
        block_tables: blocks of each sequence in logical order.
        sample_rows: int32 [num_samples], rows whose logits are wanted; of each sampled sequence the
            row of its last token and those of its draft.
        is_prompt: int32 [num_rows], 1 for tokens that were given, 0 for those that were generated,
            guessed ones among them; the same whenever the token is computed, and again after a
            preemption.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slot_mapping: np.ndarray
    query_start: np.ndarray
    seq_lens: np.ndarray
    block_tables: list[list[int]]
    sample_rows: np.ndarray
    is_prompt: np.ndarray

    @classmethod
    def of_no_rows(cls) -> "ModelBatch":
        """A step that does nothing, but what a runner does before the first one."""
        none = np.empty(0, np.int32)
        return cls(none, none, none, np.zeros(1, np.int32), none, [], none, none)


class ModelRunner(Protocol):
    """A loaded network with its paged KV cache.

    Attributes:
        network: the Cell that holds the Parameters, by Megatron-Core's names.
        vocab_size: width of the logits; token ids are below it.
        weights_bytes: memory of the loaded weights.
        mapped_weight_bytes: how much of it is a mapped file, whose memory the system counts as
            available.
        read_weight_bytes: what was read from the checkpoint for them; 0 where a cache had them.
        workspace_bytes: memory of activations and graphs at the largest step.
        kv_block_bytes: memory of one KV-cache block in all layers, keys and values.
        compile_s: time of `execute` that went into compiling graphs, so far.
    """

    network: Any
    vocab_size: int
    weights_bytes: int
    mapped_weight_bytes: int
    read_weight_bytes: int
    workspace_bytes: int
    kv_block_bytes: int
    compile_s: float

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take other weights of the same network; all names and shapes are checked first."""
        ...

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Make room for `num_blocks` blocks; called once, before the first `execute`."""
        ...

    def execute(self, batch: ModelBatch) -> np.ndarray:
        """Run one step: write K and V of every row, return the logits of `sample_rows`.

        Args:
            batch: at most max_num_batched_tokens rows, or none; up to all of them are sample rows.
        Returns:
            float32 [len(sample_rows), vocab_size], the caller's own; [0, vocab_size] when no row is
            sampled.
        """
        ...

    def close(self) -> None:
        """Give the memory of weights and KV cache back; nothing runs afterwards."""
        ...
