"""Guesses the next tokens of an answer from what prompt and answer already hold.

A draft is what followed the last earlier occurrence of the text's final n-gram (prompt lookup
decoding, Saxena 2023; Hugging Face's `prompt_lookup_num_tokens`). The engine runs the draft's
tokens with the next step and keeps those that sampling chooses anyway, so a draft changes how fast
an answer comes and nothing else.
"""

import numpy as np

_NGRAM_SIZE = 3
# A pair is enough to begin with, which finds what is copied a step earlier. Pairs match by chance
# too: after so many wrong guesses they no longer count, so they cost an answer no more than that.
_PAIR_SIZE = 2
_MAX_PAIR_MISSES = 2
_FIRST_DRAFT_LEN = 7
# After n drafts in a row of which nothing was right, no draft for 2**(n + 1) tokens.
_MAX_WAIT_EXPONENT = 7


class PromptLookup:
    """The drafts of one sequence; how long they are and how often follows from how they fare.

    Each n-gram is written down once, so a token costs the same however long the text is.

    Args:
        max_draft_len: most tokens of a draft; 0: there are none.
    """

    def __init__(self, max_draft_len: int) -> None:
        self._max_draft_len = max_draft_len
        self._draft_len = min(_FIRST_DRAFT_LEN, max_draft_len)
        self._is_pair_guess = False  # whether only a pair spoke for the last draft
        self._num_pair_misses = 0
        self._num_misses = 0  # drafts in a row without a right token
        self._resume_at = 0  # text length from which drafts are tried again
        self._token_ids: list[int] = []
        self._num_indexed = 0  # n-grams ending before this position are in _followers
        self._followers: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last one

    def propose(self, token_ids: np.ndarray, limit: int) -> list[int]:
        """Return the probable continuation, at most `limit` tokens; empty if there is none.

        Args:
            token_ids: prompt and answer so far; begins with those of the call before.
        """
        draft_len = min(limit, self._draft_len)
        if draft_len < 1 or len(token_ids) < self._resume_at:
            return []
        self._index(token_ids)
        start = self._followers.get(tuple(self._token_ids[-_NGRAM_SIZE:]))
        self._is_pair_guess = start is None
        if start is None and self._num_pair_misses < _MAX_PAIR_MISSES:
            start = self._followers.get(tuple(self._token_ids[-_PAIR_SIZE:]))
        if start is None:
            return []
        followers = self._token_ids[start : start + draft_len]
        # A text that repeats itself with a short period goes on doing so.
        period = len(self._token_ids) - start
        while len(followers) < draft_len:
            followers.append(followers[-period])
        return followers

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Take note of how many tokens of a draft were right."""
        if num_accepted == 0 and self._is_pair_guess:
            self._num_pair_misses += 1
            return
        if num_accepted == 0:
            self._num_misses += 1
            wait = 2 ** min(self._num_misses + 1, _MAX_WAIT_EXPONENT)
            self._resume_at = len(self._token_ids) + 1 + wait
        else:
            self._num_misses = 0
        # A draft with nothing wrong may have been too short, any other was too long.
        if num_accepted < num_drafted:
            self._draft_len = num_accepted + 1
        else:
            self._draft_len = min(max(2 * num_drafted, self._draft_len), self._max_draft_len)

    def _index(self, token_ids: np.ndarray) -> None:
        """Write down the n-grams that something follows."""
        known = self._token_ids
        known += token_ids[len(known) :].tolist()
        for size in (_NGRAM_SIZE, _PAIR_SIZE):
            for end in range(max(self._num_indexed, size), len(known)):
                self._followers[tuple(known[end - size : end])] = end
        self._num_indexed = len(known)
