"""One request on its way: its tokens, its KV-cache blocks and what it may still generate."""

from collections.abc import Sequence as Items

import numpy as np

from mindformers_glm.engine.constraints import Constraint
from mindformers_glm.engine.prompt_lookup import PromptLookup
from mindformers_glm.engine.sampling_params import SamplingSettings


class Sequence:
    """Prompt and generated tokens of one request, and how far the KV cache has followed.

    Attributes:
        num_prompt_tokens: length of the prompt.
        num_tokens: prompt and generated tokens.
        num_computed: leading tokens whose K and V are in the cache; 0 again after a preemption.
        num_cached_tokens: leading tokens of the prompt that were in the cache when the sequence
            first ran; None before.
        block_table: KV-cache blocks in logical order; other sequences may hold the first ones too.
        block_keys: what the first full blocks are known by (block_keys.py), as far as needed.
        max_tokens: generation ends when `num_tokens` reaches it.
        stop_token_ids: tokens that end the generation.
        rng: this request's own source of randomness, so that a draw does not depend on what else
            is in the batch.
        lookup: guesses the next tokens, at most `max_draft_len` of them.
        sample_index: which of the request's answers it is (SamplingParams.n).
        bad_words: token sequences that the answer may not hold.
        constraint: where the answer stands in the form that it must have; None: it has none. It
            follows the tokens, so a preemption leaves it as it is.
        num_prompt_rows_read: leading tokens of the prompt whose logits are no longer wanted:
            prompt_logprobs reads those of all but the last, which tells the first new token.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Items[int],
        settings: SamplingSettings,
        *,
        max_tokens: int,
        stop_token_ids: frozenset[int],
        rng: np.random.Generator,
        max_draft_len: int = 0,
        sample_index: int = 0,
        bad_words: Items[Items[int]] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.request_id = request_id
        self.settings = settings
        self.max_tokens = max_tokens
        self.stop_token_ids = stop_token_ids
        self.rng = rng
        self.lookup = PromptLookup(max_draft_len)
        self.sample_index = sample_index
        self.bad_words = bad_words
        self.constraint = constraint
        self.num_prompt_tokens = len(prompt_token_ids)
        reads_prompt = settings.prompt_logprobs is not None and sample_index == 0
        self.num_prompt_rows_read = 0 if reads_prompt else len(prompt_token_ids) - 1
        self.num_tokens = len(prompt_token_ids)
        self.num_computed = 0
        self.num_cached_tokens: int | None = None
        self.block_table: list[int] = []
        self.block_keys: list[bytes] = []
        self._token_ids = np.array(prompt_token_ids, np.int32)
        self._distinct_token_ids = np.empty(0, np.int32)
        self._seen: set[int] = set()  # the same ones
        self._num_seen = 0  # leading tokens that were looked at for them

    @property
    def token_ids(self) -> np.ndarray:
        """All tokens so far, int32 [num_tokens]; a view that the next append may outdate."""
        return self._token_ids[: self.num_tokens]

    @property
    def generated_token_ids(self) -> np.ndarray:
        """Generated tokens so far, int32."""
        return self._token_ids[self.num_prompt_tokens : self.num_tokens]

    @property
    def distinct_token_ids(self) -> np.ndarray:
        """The different ones of `token_ids`, int32; only tokens that are new since cost time."""
        new = set(self.token_ids[self._num_seen :].tolist()) - self._seen
        self._num_seen = self.num_tokens
        if new:
            self._seen |= new
            self._distinct_token_ids = np.append(
                self._distinct_token_ids, np.array([*new], np.int32)
            )
        return self._distinct_token_ids

    @property
    def num_reusable_tokens(self) -> int:
        """Leading tokens that need not run where their K and V are in the cache already."""
        is_read = self.num_prompt_rows_read == self.num_prompt_tokens - 1
        return self.num_tokens - 1 if is_read else self.num_prompt_rows_read

    @property
    def num_generated(self) -> int:
        """How many tokens were generated so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that have still to go through the network; 1 while decoding."""
        return self.num_tokens - self.num_computed

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        if self.num_tokens == len(self._token_ids):
            # Doubling keeps appending cheap without reserving max_model_len for short answers.
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
        self._token_ids[self.num_tokens] = token_id
        self.num_tokens += 1

    def stop_guessing(self) -> None:
        """Give back what guesses are looked up in: no more tokens come."""
        self.lookup = PromptLookup(0)
