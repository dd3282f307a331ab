"""What the workers of llama.cpp and of its fork share: sequences as rows of `llama_decode`.

A worker's own class loads the library and its model, and says how a batch is fed.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf_sizes import read_tensor_bytes

_EMBEDDING = "token_embd.weight"
MAX_BATCH = 512  # rows of one `llama_decode`, which is llama.cpp's default micro-batch


class Row(NamedTuple):
    """One token of a batch, and whether its logits are wanted."""

    token: int
    position: int
    sequence: int
    is_wanted: bool


class RowRunner(ABC):
    """Runs sequences side by side; each goes on with its largest logit."""

    allocated_bytes = None

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._next_tokens: list[int] = []
        self._length = 0

    def start(self, prompts: list[list[int]]) -> None:
        self._clear()
        self._next_tokens = [self._feed_prompt(i, prompt) for i, prompt in enumerate(prompts)]
        self._length = len(prompts[0])

    def step(self) -> None:
        tokens = self._next_tokens
        self._feed([Row(token, self._length, i, True) for i, token in enumerate(tokens)])
        self._next_tokens = [self._choose(i) for i in range(len(tokens))]
        self._length += 1

    def prefill(self, prompt: list[int]) -> int:
        self.start([prompt])
        return self._next_tokens[0]

    def _feed_prompt(self, sequence: int, prompt: list[int]) -> int:
        last = len(prompt) - 1
        rows = [Row(token, i, sequence, i == last) for i, token in enumerate(prompt)]
        for begin in range(0, len(rows), MAX_BATCH):
            self._feed(rows[begin : begin + MAX_BATCH])
        return self._choose(last % MAX_BATCH)

    def _choose(self, row: int) -> int:
        return int(np.ctypeslib.as_array(self._logits(row), (self._vocab_size,)).argmax())

    @abstractmethod
    def _clear(self) -> None:
        """Forget all sequences."""

    @abstractmethod
    def _feed(self, rows: list[Row]) -> None:
        """Run one batch.

        Raises:
            RuntimeError: the library could not.
        """

    @abstractmethod
    def _logits(self, row: int) -> Any:
        """Wait for the result; a pointer to the logits of a row of the last batch."""


def count_weight_bytes(path: str) -> int:
    """All tensors of a GGUF file except the embedding."""
    tensors = read_tensor_bytes(Path(path))
    return sum(size for name, size in tensors.items() if name != _EMBEDDING)
