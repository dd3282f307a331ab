"""What the engine asks of a model on a device."""

from typing import Protocol

import numpy as np

from mindformers_glm.engine.batch import ModelBatch


class ModelRunner(Protocol):
    """A loaded network with its paged KV cache.

    Attributes:
        vocab_size: width of the logits; token ids are below it.
        weights_bytes: memory of the loaded weights.
        mapped_weight_bytes: how much of it is a mapped file, whose memory the system counts as
            available.
        read_weight_bytes: what was read from the checkpoint for them; 0 where a cache had them.
        workspace_bytes: memory of activations and graphs at the largest step.
        kv_block_bytes: memory of one KV-cache block in all layers, keys and values.
    """

    vocab_size: int
    weights_bytes: int
    mapped_weight_bytes: int
    read_weight_bytes: int
    workspace_bytes: int
    kv_block_bytes: int

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Make room for `num_blocks` blocks; called once, before the first `execute`."""
        ...

    def execute(self, batch: ModelBatch) -> np.ndarray:
        """Run one step: write K and V of every row, return the logits of `sample_rows`.

        Args:
            batch: at most max_num_batched_tokens rows; up to all of them are sample rows.
        Returns:
            float32 [len(sample_rows), vocab_size], valid until the next call; [0, vocab_size] when
            no row is sampled.
        """
        ...

    def close(self) -> None:
        """Give the memory of weights and KV cache back; nothing runs afterwards."""
        ...
