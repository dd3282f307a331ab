"""From the logits of one row to the next token, as Hugging Face chooses it.

Order and rules follow transformers 4.51.3, `generation/utils.py _get_logits_processor` and
`generation/logits_process.py`: repetition penalty, forbidden end tokens, then for sampling
temperature, top_k, top_p, min_p. One row at a time with the request's own generator: the result
does not depend on the rest of the batch.
"""

import numpy as np

from mindformers_glm.engine.sampling_params import SamplingSettings
from mindformers_glm.engine.sequence import Sequence

# How many of the best tokens top_p looks at first. The nucleus of a language model rarely has more,
# and sorting all of a vocabulary of 151552 takes longer than everything else here.
_FIRST_NUCLEUS_GUESS = 1024


class NonFiniteLogitsError(ValueError):
    """The network gave NaN or infinity: no token can be chosen."""


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
        kth_best = np.partition(scores, -settings.top_k)[-settings.top_k]
        token_ids = np.flatnonzero(scores >= kth_best)  # ties with the k-th are kept
    else:
        token_ids = np.arange(len(scores))
    if settings.top_p < 1.0:
        token_ids = _keep_nucleus(scores, token_ids, settings.top_p)
    kept = scores[token_ids]
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


def _keep_nucleus(scores: np.ndarray, token_ids: np.ndarray, top_p: float) -> np.ndarray:
    """Keep the best tokens until their probabilities sum to top_p; at least one.

    A token stays if the tokens better than it sum to less than top_p; among equals the higher id
    counts as better (Hugging Face leaves that open, its sort is not stable). Values alone are
    sorted, and only the best of them where that is enough.
    """
    candidates = scores[token_ids]
    wanted = top_p * np.exp(candidates - candidates.max()).sum(dtype=np.float64)
    best = candidates
    if len(candidates) > _FIRST_NUCLEUS_GUESS:
        best = np.partition(candidates, -_FIRST_NUCLEUS_GUESS)[-_FIRST_NUCLEUS_GUESS:]
        if np.exp(best - best.max()).sum(dtype=np.float64) < wanted:
            best = candidates
    best = np.sort(best)[::-1]
    sums = np.cumsum(np.exp(best - best[0]), dtype=np.float64)
    num_kept = 1 + int(np.count_nonzero(sums[:-1] < wanted))  # sums[i] is better than token i + 1
    worst_kept = best[num_kept - 1]
    num_equals_kept = num_kept - int(np.count_nonzero(best > worst_kept))
    equals = np.flatnonzero(candidates == worst_kept)[-num_equals_kept:]
    is_kept = candidates > worst_kept
    is_kept[equals] = True
    return token_ids[is_kept]
