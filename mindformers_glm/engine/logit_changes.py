"""What a request's settings make of the network's logits before a token is chosen.

First of all goes what the answer's form does not allow. The order of the rest is vLLM's (0.10,
`v1/sample/sampler.py`): forbidden tokens, bias, then the penalties:
repetition, frequency, presence. Each acts as in vLLM; repetition as in Hugging Face too.
"""

import numpy as np

from mindformers_glm.engine.sequence import Sequence

_MOST_PENALTY = 1e10  # of repetition: beyond it products leave float32, and no logit is so large


def change_logits(
    logits: np.ndarray, sequence: Sequence, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Return the scores to choose from: `logits` itself where nothing changes them, else a copy.

    Args:
        logits: float32 [vocab_size] of the sequence's last token; not changed.
        allowed: bool [vocab_size], the tokens that the answer's form allows; None: all.
    """
    settings = sequence.settings
    scores = logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))
    forbidden = _list_forbidden(sequence)
    if forbidden:
        scores = scores.copy()
        scores[forbidden] = -np.inf
    if settings.logit_bias:
        scores = scores.copy()
        token_ids, biases = zip(*settings.logit_bias, strict=True)
        scores[list(token_ids)] += np.array(biases, np.float32)
    if settings.repetition_penalty != 1.0:
        seen = sequence.distinct_token_ids  # all of them would cost more with each token
        scores = penalize_repetition(scores, seen, settings.repetition_penalty)
    if settings.frequency_penalty or settings.presence_penalty:
        token_ids, counts = np.unique(sequence.generated_token_ids, return_counts=True)
        scores = scores.copy()
        scores[token_ids] -= np.float32(settings.frequency_penalty) * counts.astype(np.float32)
        scores[token_ids] -= np.float32(settings.presence_penalty)
    return scores


def penalize_repetition(scores: np.ndarray, token_ids: np.ndarray, penalty: float) -> np.ndarray:
    """Make the tokens that occurred less likely (Keskar et al. 2019, arXiv:1909.05858)."""
    penalty = min(max(penalty, 1 / _MOST_PENALTY), _MOST_PENALTY)
    scores = scores.copy()
    found = scores[token_ids]  # with repetitions: each is written with the same value
    scores[token_ids] = np.where(found < 0, found * penalty, found / penalty)
    return scores


def _list_forbidden(sequence: Sequence) -> list[int]:
    """End tokens before the answer may end, and those that would complete a bad word."""
    is_short = sequence.num_generated < sequence.settings.min_new_tokens
    forbidden = list(sequence.stop_token_ids) if is_short else []
    for spelling in sequence.bad_words:
        num_before = len(spelling) - 1
        # The prompt does not count: a bad word is one that the answer holds as a whole.
        written = sequence.generated_token_ids[max(sequence.num_generated - num_before, 0) :]
        if written.tolist() == list(spelling[:-1]):
            forbidden.append(spelling[-1])
    return forbidden
