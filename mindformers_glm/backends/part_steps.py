"""The steps that a self-test runs: texts of awkward lengths, taken piece by piece."""

from collections.abc import Iterator, Sequence

import numpy as np

from mindformers_glm.backends.runner import ModelBatch

_LONGEST_PROMPT = 150  # more than the 128 positions of one tile of a prompt's mask
_CHUNK, _LATE_PROMPT = 7, 9
NUM_GREEDY_TOKENS = 8
SHORTEST_CONTEXT = 64


class SelfTestSteps:
    """Random texts, each with blocks of its own that do not lie behind each other.

    Args:
        max_model_len: at least SHORTEST_CONTEXT.

    Attributes:
        num_blocks: of the KV cache; one of them belongs to no text.
    """

    def __init__(self, vocab_size: int, block_size: int, max_model_len: int) -> None:
        self._block_size = block_size
        rng = np.random.default_rng(15)
        self._prompt_lens = (
            1,
            block_size - 1,  # the next step fills the block
            block_size,  # the next step begins another
            min(_LONGEST_PROMPT, max_model_len - 2),
        )
        lengths = [
            *(length + _CHUNK + 1 for length in self._prompt_lens[:3]),
            self._prompt_lens[3] + 2,
            _LATE_PROMPT,
            _LATE_PROMPT + NUM_GREEDY_TOKENS,
        ]
        self._texts = [rng.integers(0, vocab_size, length).tolist() for length in lengths]
        num_needed = [-(-length // block_size) for length in lengths]
        self.num_blocks = sum(num_needed) + 1
        blocks = iter(rng.permutation(self.num_blocks).tolist())
        self._tables = [[next(blocks) for _ in range(count)] for count in num_needed]

    def __iter__(self) -> Iterator[tuple[str, ModelBatch]]:
        """Each step with its name, in the order in which they have to be run."""
        lens = self._prompt_lens
        yield "prompts", self._batch([(text, 0, length) for text, length in enumerate(lens)])
        one_each = [(text, length, length + 1) for text, length in enumerate(lens)]
        yield "one token each", self._batch(one_each)
        chunk, token = lens[1] + 1, lens[3] + 1
        mixed = [(1, chunk, chunk + _CHUNK), (3, token, token + 1), (4, 0, _LATE_PROMPT)]
        yield "chunk, token and prompt", self._batch(mixed)

    def greedy_prompt(self) -> list[int]:
        """The beginning of a text whose other tokens are chosen one by one."""
        return self._texts[-1][:_LATE_PROMPT]

    def greedy_step(self, tokens: list[int], cached_len: int) -> ModelBatch:
        """The tokens of that text which are not in the KV cache yet."""
        self._texts[-1] = tokens
        return self._batch([(len(self._texts) - 1, cached_len, len(tokens))])

    def _batch(self, pieces: Sequence[tuple[int, int, int]]) -> ModelBatch:
        """Pieces are (text, begin, end); the last row of each is sampled."""
        query_start = np.cumsum([0, *(end - begin for _, begin, end in pieces)], dtype=np.int32)
        tables = [self._tables[text][: -(-end // self._block_size)] for text, _, end in pieces]
        slots = [
            np.array(table)[np.arange(begin, end) // self._block_size] * self._block_size
            + np.arange(begin, end) % self._block_size
            for table, (_, begin, end) in zip(tables, pieces, strict=True)
        ]
        return ModelBatch(
            token_ids=np.array(
                [token for text, begin, end in pieces for token in self._texts[text][begin:end]],
                np.int32,
            ),
            positions=np.concatenate([np.arange(b, e, dtype=np.int32) for _, b, e in pieces]),
            slot_mapping=np.concatenate(slots).astype(np.int32),
            query_start=query_start,
            seq_lens=np.array([end for *_, end in pieces], np.int32),
            block_tables=tables,
            sample_rows=query_start[1:] - 1,
            is_prompt=np.ones(query_start[-1], np.int32),
        )
