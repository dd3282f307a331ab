"""Log-probabilities of tokens, in vLLM's form.

Source: vLLM's `Logprob` and `raw_logprobs`, its default: of each place a dict from token id to
`Logprob`, first the token that stands there, then the likeliest ones. They are those of the network
itself: nothing of the sampling is in them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely the network found a token.

    Attributes:
        logprob: natural logarithm of its probability.
        rank: 1 for the likeliest token; of equals the lower id comes first.
        decoded_token: its text; U+FFFD for bytes that are no character by themselves.
    """

    logprob: float
    rank: int
    decoded_token: str


TokenLogprobs: TypeAlias = dict[int, Logprob]


def list_logprobs(
    logits: np.ndarray, token_id: int, count: int, decode_token: Callable[[int], str]
) -> TokenLogprobs:
    """Return the log-probability of a token and of the likeliest ones.

    Args:
        logits: float32 [vocab_size], as the network gave them.
        token_id: the token that stands there; first in the result.
        count: how many of the likeliest tokens; -1: all.
    """
    best = logits.max()
    shift = float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    ranks = {token_id: _rank(logits, token_id)}
    ranks |= {likely: place + 1 for place, likely in enumerate(_list_likeliest(logits, count))}
    return {
        ranked: Logprob(float(logits[ranked]) - shift, rank, decode_token(ranked))
        for ranked, rank in ranks.items()
    }


def _rank(logits: np.ndarray, token_id: int) -> int:
    own = logits[token_id]
    num_equals_before = np.count_nonzero(logits[:token_id] == own)
    return 1 + int(np.count_nonzero(logits > own) + num_equals_before)


def _list_likeliest(logits: np.ndarray, count: int) -> list[int]:
    if count == 0:
        return []
    count = len(logits) if count < 0 else min(count, len(logits))
    worst = np.partition(logits, -count)[-count]
    token_ids = np.flatnonzero(logits >= worst)
    order = np.argsort(-logits[token_ids], kind="stable")  # stable: lower ids first
    return token_ids[order[:count]].tolist()
