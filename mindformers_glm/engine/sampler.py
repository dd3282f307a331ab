"""From the logits of one row to the next token, as Hugging Face chooses it.

Order and rules follow transformers 4.51.3, `generation/utils.py _get_logits_processor` and
`generation/logits_process.py`: repetition penalty, forbidden end tokens, then for sampling
temperature, top_k, top_p, min_p. One row at a time with the request's own generator: the result
does not depend on the rest of the batch.
"""

import numpy as np

from mindformers_glm.engine.sampling_params import SamplingSettings
from mindformers_glm.engine.sequence import Sequence

# Sorting a vocabulary of 151552 takes 15 ms; so the tokens are narrowed down first, exactly.
# How many of the best ones top_p looks at first: a language model's nucleus rarely has more.
_FIRST_NUCLEUS_GUESS = 1024
# Where that is too few: so many bins of scores, from the best one down to this far below it.
_NUM_BINS = 4096
_LARGEST_SPREAD = 32.0
_CHUNK_SIZE = 8192  # tokens put into bins at a time, which stay in the CPU cache
# Tokens of one group, of which only the best counts when a bound for the k-th best is sought.
_GROUP_SIZE = 16


# A request of this size that was freed makes glibc keep freed memory of up to twice as much.
_KEPT_BYTES = 8 * 2**20


class NonFiniteLogitsError(ValueError):
    """The network gave NaN or infinity: no token can be chosen."""


def keep_freed_memory() -> None:
    """Let the arrays of a sampled row use memory that the arrays of the row before gave back.

    glibc returns freed arrays of a vocabulary's size to the system, and fetching them again costs
    ten times what is computed in them; unless a larger array was freed before (mallopt(3),
    M_MMAP_THRESHOLD: the threshold adapts itself). Without glibc this does nothing.
    """
    np.empty(_KEPT_BYTES, np.uint8)


def sample_token(logits: np.ndarray, sequence: Sequence) -> int:
    """Choose the next token of a sequence.

    Args:
        logits: float32 [vocab_size] of the sequence's last token; not changed.
    Raises:
        NonFiniteLogitsError: a logit is NaN or infinite.
    """
    settings = sequence.settings
    if not np.isfinite(logits).all():
        raise NonFiniteLogitsError("the network's output is not finite")
    scores = logits
    if settings.repetition_penalty != 1.0:
        scores = penalize_repetition(scores, sequence.token_ids, settings.repetition_penalty)
    if sequence.num_generated < settings.min_new_tokens and sequence.stop_token_ids:
        scores = scores.copy()
        scores[list(sequence.stop_token_ids)] = -np.inf
    if settings.is_greedy:
        return int(np.argmax(scores))  # the first one of equals, as torch.argmax
    token_ids, kept_scores = keep_candidates(scores, settings)
    return draw_token(token_ids, kept_scores, sequence.rng)


def penalize_repetition(scores: np.ndarray, token_ids: np.ndarray, penalty: float) -> np.ndarray:
    """Make the tokens that occurred less likely (Keskar et al. 2019, arXiv:1909.05858)."""
    scores = scores.copy()
    found = scores[token_ids]  # with repetitions: each is written with the same value
    scores[token_ids] = np.where(found < 0, found * penalty, found / penalty)
    return scores


def keep_candidates(
    scores: np.ndarray, settings: SamplingSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Apply temperature, top_k, top_p and min_p.

    Args:
        scores: float32 [vocab_size], -inf for forbidden tokens.
    Returns:
        ids of the kept tokens in ascending order, and their scores divided by the temperature.
    """
    scores = scores / np.float32(settings.temperature)
    if 0 < settings.top_k < len(scores):
        kth_best = _find_kth_best(scores, settings.top_k)
        token_ids = np.flatnonzero(scores >= kth_best)  # ties with the k-th are kept
        kept = scores[token_ids]
    else:
        token_ids, kept = np.arange(len(scores)), scores
    if settings.top_p < 1.0:
        indices = _find_nucleus(kept, settings.top_p)
        token_ids, kept = token_ids[indices], kept[indices]
    if settings.min_p > 0.0:
        is_probable = np.exp(kept - kept.max()) >= np.float32(settings.min_p)
        token_ids, kept = token_ids[is_probable], kept[is_probable]
    return token_ids, kept


def draw_token(token_ids: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> int:
    """Draw one of the tokens with the softmax of their scores as probabilities."""
    cumulative = np.cumsum(np.exp(scores - scores.max()), dtype=np.float64)
    # side="right" steps over tokens of probability zero.
    index = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return int(token_ids[min(index, len(token_ids) - 1)])


def _find_kth_best(scores: np.ndarray, k: int) -> np.float32:
    """Return the k-th largest score."""
    num_groups = len(scores) // _GROUP_SIZE
    if num_groups > 2 * k:
        grouped = scores[: num_groups * _GROUP_SIZE].reshape(_GROUP_SIZE, num_groups)
        # k groups have a best score of at least this, so k tokens have.
        bound = np.partition(grouped.max(axis=0), -k)[-k]
        scores = scores[scores >= bound]
    return np.partition(scores, -k)[-k]


def _find_nucleus(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Return the indices, ascending, of the best tokens whose probabilities sum to top_p.

    A token stays if the tokens better than it sum to less than top_p, and at least one does; among
    equals the higher id counts as better (Hugging Face leaves that open, its sort is not stable).
    """
    best = scores.max()
    weights = np.exp(scores - best)
    wanted = top_p * weights.sum(dtype=np.float64)
    is_near, sum_above = _narrow_down(scores, weights, wanted)
    near = np.sort(scores[is_near])[::-1]
    sums = sum_above + np.cumsum(np.exp(near - best), dtype=np.float64)
    num_kept = 1 + int(np.count_nonzero(sums[:-1] < wanted))  # sums[i] is better than near[i + 1]
    worst_kept = near[num_kept - 1]
    num_equals_kept = num_kept - int(np.count_nonzero(near > worst_kept))
    is_kept = scores > worst_kept
    is_kept[np.flatnonzero(scores == worst_kept)[-num_equals_kept:]] = True
    return np.flatnonzero(is_kept)


def _narrow_down(
    scores: np.ndarray, weights: np.ndarray, wanted: float
) -> tuple[np.ndarray, float]:
    """Find few tokens among which the worst one of the nucleus is.

    Args:
        weights: exp(scores - best).
        wanted: the nucleus' sum of weights.
    Returns:
        which tokens these are, with all that are equal to one of them; and the weight of the
        better ones, which is below `wanted`.
    """
    if len(scores) <= _FIRST_NUCLEUS_GUESS:
        return np.ones(len(scores), bool), 0.0
    is_best = scores >= _find_kth_best(scores, _FIRST_NUCLEUS_GUESS)
    if weights[is_best].sum(dtype=np.float64) >= wanted:
        return is_best, 0.0
    best = scores.max()
    spread = min(max(float(best - scores.min()), 1e-30), _LARGEST_SPREAD)
    bins_per_unit = np.float32(_NUM_BINS / spread)
    distances = np.minimum((best - scores) * bins_per_unit, np.float32(_NUM_BINS - 1))
    sums = np.zeros(_NUM_BINS)
    for start in range(0, len(scores), _CHUNK_SIZE):
        chunk = slice(start, start + _CHUNK_SIZE)
        sums += np.bincount(distances[chunk].astype(np.int64), weights[chunk], _NUM_BINS)
    sums = np.cumsum(sums)
    # Rounding may leave the last sum below `wanted`; all tokens stay then.
    chosen = min(int(np.searchsorted(sums, wanted)), int(distances.max()))
    is_near = (distances >= chosen) & (distances < chosen + 1)
    return is_near, float(sums[chosen - 1]) if chosen else 0.0
