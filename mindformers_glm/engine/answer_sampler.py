"""The next token of an answer, and whether the answer ends with it."""

from collections.abc import Mapping
from collections.abc import Sequence as Items

import numpy as np

from mindformers_glm.engine.constraints import RowMask
from mindformers_glm.engine.running_request import Ending, RunningSample
from mindformers_glm.engine.sampler import (
    NonFiniteLogitsError,
    NoTokenLeftError,
    check_finite,
    sample_token,
)


class AnswerSampler:
    """Lets answers grow by one token at a time.

    Args:
        eos_token_ids: of the stop tokens, those that are no `stop_reason`.
        special_token_names: of the tokens without text; where they stand in an answer is kept.
    """

    def __init__(
        self, eos_token_ids: Items[int], special_token_names: Mapping[int, str] | None
    ) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._special_token_names = special_token_names or {}

    def take_token(
        self, sample: RunningSample, logits: np.ndarray, mask: RowMask | None
    ) -> Ending | None:
        """Sample a token and append it; return why the answer ends, if it does.

        Args:
            logits: float32 [vocab_size], of the answer's last token.
            mask: what the form of the answer allows; None: it has none.
        """
        sequence, constraint = sample.sequence, sample.sequence.constraint
        if constraint is not None and constraint.error is not None:
            return _end_for_form(sample, constraint.error)
        if mask is not None and mask.is_end:
            return Ending("stop")
        try:
            token_id = _choose_token(sample, logits, mask and mask.allowed)
        except NonFiniteLogitsError:
            return end_for_numbers(sample)
        except NoTokenLeftError:
            return _end_for_form(sample, "bad_words, stop tokens or min_new_tokens leave none")
        sample.append(token_id, logits)
        if token_id in sequence.stop_token_ids:
            is_end_of_text = not sequence.settings.ignore_eos and token_id in self._eos_token_ids
            return Ending("stop", stop_reason=None if is_end_of_text else token_id)
        sample.add_text(token_id, self._special_token_names.get(token_id))
        if sample.matcher.is_stopped:
            return Ending("stop")
        if constraint is not None:
            constraint.accept(token_id)
            if constraint.error is not None:
                return _end_for_form(sample, constraint.error)
            if constraint.is_complete:
                return Ending("stop")
        if sequence.num_tokens >= sequence.max_tokens:
            return Ending("length")
        return None


def end_for_numbers(sample: RunningSample) -> Ending:
    """How a sample ends whose logits are NaN or infinite."""
    return Ending(
        "error",
        f"The network's output for token {sample.sequence.num_tokens} of this request is not "
        "a number: use params_dtype bfloat16 or float32 if it is float16, else check the "
        "checkpoint's files.",
    )


def _end_for_form(sample: RunningSample, problem: str) -> Ending:
    return Ending(
        "error",
        f"No token {sample.sequence.num_tokens} of this request can follow in the form that "
        f"the answer must have ({problem}): make the schema or grammar simpler.",
    )


def _choose_token(sample: RunningSample, logits: np.ndarray, allowed: np.ndarray | None) -> int:
    """Return the token that must come next, else sample one; errors as `sample_token`."""
    token_id = sample.next_token_id
    # A grammar of bytes does not end thoughts in the middle of a character.
    if token_id is None or (allowed is not None and not allowed[token_id]):
        return sample_token(logits, sample.sequence, allowed)
    check_finite(logits)
    return token_id
