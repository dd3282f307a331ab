"""Sequences for tests, with the settings that do not matter filled in."""

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.sequence import Sequence


def make_sequence(
    prompt: int | Items[int],
    generated: Items[int] = (),
    *,
    stop: Items[int] = (),
    max_draft_len: int = 0,
    **params: Any,
) -> Sequence:
    """Return a sequence; an int as prompt means that many tokens 1, 2, 3, ..."""
    token_ids = list(range(1, prompt + 1)) if isinstance(prompt, int) else prompt
    sequence = Sequence(
        f"request of {len(token_ids)}",
        token_ids,
        GenerationDefaults().resolve(SamplingParams(**params)),
        max_tokens=10_000,
        stop_token_ids=frozenset(stop),
        rng=np.random.default_rng(params.get("seed", 0)),
        max_draft_len=max_draft_len,
    )
    for token_id in generated:
        sequence.append(token_id)
    return sequence
