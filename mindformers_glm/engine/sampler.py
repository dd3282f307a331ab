"""From the logits of one row to the next token, as Hugging Face chooses it.

Order and rules follow transformers 4.51.3, `generation/utils.py _get_logits_processor` and
`generation/logits_process.py`: what the settings change of the logits (logit_changes.py), then for
sampling temperature, top_k, top_p, min_p. One row at a time with the request's own generator: the
result does not depend on the rest of the batch.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mindformers_glm.engine.logit_changes import change_logits
from mindformers_glm.engine.sampling_params import SamplingSettings
from mindformers_glm.engine.sequence import Sequence

# Sorting a vocabulary of 151552 takes 5 ms; so the tokens are narrowed down first, exactly.
# How many of the best ones top_p looks at first: a language model's nucleus rarely has more.
_FIRST_NUCLEUS_GUESS = 1024
# Where that is too few: tokens are put into bins by the upper half of the bits of their distance
# from the best score. So a bin is at most 1/128 of its distance wide, whatever the spread is.
_DROPPED_BITS = 16
# Most tokens of one group, of which only the best counts when a bound for the k-th best is sought.
_GROUP_SIZE = 64
# Beyond these the quotients leave float32, and the draw is already the one of their limits: all to
# the best token, or to each the same.
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-20, 1e20
_BLOCK_SIZE = 512  # tokens whose weights are summed up before one of them is drawn

# A request of this size that was freed makes glibc keep freed memory of up to twice as much.
_KEPT_BYTES = 8 * 2**20


class Candidates(NamedTuple):
    """The tokens to draw from, marked among others: ids ascending, one value of each per token.

    The others may stay, as taking half a vocabulary out of it costs more than drawing does.
    """

    token_ids: np.ndarray
    scores: np.ndarray  # divided by the temperature
    weights: np.ndarray  # exp(scores - best)
    is_kept: np.ndarray


class NonFiniteLogitsError(ValueError):
    """The network gave NaN or infinity: no token can be chosen."""


class NoTokenLeftError(ValueError):
    """The answer's form and the request's other settings together forbid every token."""


def keep_freed_memory() -> None:
    """Let the arrays of a sampled row use memory that the arrays of the row before gave back.

    glibc returns freed arrays of a vocabulary's size to the system, and fetching them again costs
    ten times what is computed in them; unless a larger array was freed before (mallopt(3),
    M_MMAP_THRESHOLD: the threshold adapts itself). Without glibc this does nothing.
    """
    np.empty(_KEPT_BYTES, np.uint8)


def sample_token(logits: np.ndarray, sequence: Sequence, allowed: np.ndarray | None = None) -> int:
    """Choose the next token of a sequence.

    Args:
        logits: float32 [vocab_size] of the sequence's last token; not changed.
        allowed: bool [vocab_size], the tokens that the answer's form allows; None: all.
    Raises:
        NonFiniteLogitsError: a logit is NaN or infinite.
        NoTokenLeftError: no token is left of those that are allowed.
    """
    settings = sequence.settings
    check_finite(logits)
    scores = change_logits(logits, sequence, allowed)
    if allowed is not None and scores.max() == -np.inf:
        raise NoTokenLeftError
    if settings.is_greedy:
        return int(np.argmax(scores))  # the first one of equals, as torch.argmax
    candidates = weigh_candidates(scores, settings)
    index = draw_index(candidates.weights * candidates.is_kept, sequence.rng)
    return int(candidates.token_ids[index])


def check_finite(logits: np.ndarray) -> None:
    """Refuse logits that are no numbers.

    Raises:
        NonFiniteLogitsError: a logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise NonFiniteLogitsError("the network's output is not finite")


def weigh_candidates(scores: np.ndarray, settings: SamplingSettings) -> Candidates:
    """Apply temperature, top_k, top_p and min_p.

    Args:
        scores: float32 [vocab_size], -inf for forbidden tokens.
    Raises:
        NonFiniteLogitsError: a score grows beyond float32.
    """
    temperature = min(max(settings.temperature, _LEAST_TEMPERATURE), _MOST_TEMPERATURE)
    scores = scores / np.float32(temperature)
    token_ids = _list_token_ids(len(scores))
    if 0 < settings.top_k < len(scores):
        kth_best = _find_kth_best(scores, settings.top_k)
        token_ids = np.flatnonzero(scores >= kth_best)  # ties with the k-th are kept
        scores = scores[token_ids]
    best_score = scores.max()
    if best_score == np.inf:
        raise NonFiniteLogitsError("a score divided by the temperature is not finite")
    weights = np.exp(scores - best_score)
    if settings.top_p < 1.0:
        wanted = settings.top_p * weights.sum(dtype=np.float64)
        # No weight is above 1: so many tokens are too few where more is wanted.
        if wanted <= _FIRST_NUCLEUS_GUESS < len(scores):
            best = np.flatnonzero(scores >= _find_bound(scores, _FIRST_NUCLEUS_GUESS))
            if weights[best].sum(dtype=np.float64) >= wanted:
                token_ids, scores, weights = token_ids[best], scores[best], weights[best]
        is_kept = _mark_nucleus(scores, weights, wanted)
        is_kept &= weights >= np.float32(settings.min_p)
    else:
        is_kept = weights >= np.float32(settings.min_p)
    return Candidates(token_ids, scores, weights, is_kept)


def draw_index(weights: np.ndarray, rng: np.random.Generator) -> int:
    """Draw an index with probabilities in proportion to the weights."""
    # Sums of blocks first: a running sum of a vocabulary takes 0.5 ms.
    starts = np.arange(0, len(weights), _BLOCK_SIZE)
    ends = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    drawn = rng.random() * ends[-1]
    # side="right" steps over what has no weight.
    block = int(np.searchsorted(ends, drawn, side="right"))
    block = min(block, len(ends) - 1)  # all are forbidden: the weights are NaN
    before = ends[block - 1] if block else 0.0
    sums = np.cumsum(weights[starts[block] :][:_BLOCK_SIZE], dtype=np.float64)
    index = np.searchsorted(sums, drawn - before, side="right")
    # Rounding may leave all sums below what is drawn: then the last token that has a weight.
    return int(starts[block] + min(index, np.argmax(sums)))


@lru_cache(maxsize=1)
def _list_token_ids(vocab_size: int) -> np.ndarray:
    token_ids = np.arange(vocab_size)
    token_ids.flags.writeable = False  # shared by all rows
    return token_ids


def _find_kth_best(scores: np.ndarray, k: int) -> np.float32:
    """Return the k-th largest score."""
    return np.partition(scores[scores >= _find_bound(scores, k)], -k)[-k]


def _find_bound(scores: np.ndarray, k: int) -> np.float32:
    """Return a score that at least k tokens reach, and few more where k is small."""
    group_size = min(_GROUP_SIZE, len(scores) // (2 * k))
    if group_size < 2:
        return np.float32(-np.inf)
    num_groups = len(scores) // group_size
    grouped = scores[: num_groups * group_size].reshape(group_size, num_groups)
    # k groups have a best score of at least this, so k tokens have.
    return np.partition(grouped.max(axis=0), -k)[-k]


def _mark_nucleus(scores: np.ndarray, weights: np.ndarray, wanted: float) -> np.ndarray:
    """Mark the best tokens whose weights sum to `wanted`.

    A token stays if the tokens better than it sum to less, and at least one does; among equals
    the higher id counts as better (Hugging Face leaves that open, its sort is not stable).
    """
    best = scores.max() + np.float32(0)  # makes 0.0 of -0.0, so no distance is -0.0
    near, sum_above = scores, 0.0  # the worst token that stays is among `near`
    if len(scores) > 2 * _FIRST_NUCLEUS_GUESS:
        # Bits of numbers that are not negative are in the order of the numbers.
        bins = (best - scores).view(np.uint32) >> _DROPPED_BITS
        bin_sums = np.cumsum(np.bincount(bins, weights))
        # Rounding may leave the last sum below `wanted`; all tokens stay then.
        chosen = min(int(np.searchsorted(bin_sums, wanted)), len(bin_sums) - 1)
        near, sum_above = scores[bins == chosen], bin_sums[chosen - 1] if chosen else 0.0
    near = np.sort(near)[::-1]
    sums = sum_above + np.cumsum(np.exp(near - best), dtype=np.float64)
    num_near_kept = 1 + int(np.count_nonzero(sums[:-1] < wanted))  # sums[i]: better than near[i+1]
    worst_kept = near[num_near_kept - 1]
    is_kept = scores >= worst_kept
    num_equals_cut = np.count_nonzero(near[num_near_kept:] == worst_kept)
    if num_equals_cut:
        is_kept[np.flatnonzero(scores == worst_kept)[:num_equals_cut]] = False
    return is_kept
