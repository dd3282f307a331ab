"""Log-probabilities of the shipped checkpoint's network are those of `LLM.logits`."""

from itertools import chain

import numpy as np
import pytest

from mindformers_glm import LLM, SamplingParams
from tests.conftest import MINI

pytestmark = pytest.mark.weights
PROMPT = list(range(100, 180))  # a chunk of 64 tokens and a part of one


def test_of_prompt_and_answer_in_chunks_and_from_the_cache() -> None:
    params = SamplingParams(max_tokens=9, logprobs=2, prompt_logprobs=2, ignore_eos=True)
    with LLM(MINI, max_model_len=128, max_num_batched_tokens=64) as llm:
        llm.generate(PROMPT, SamplingParams(max_tokens=1))
        (output,) = llm.generate(PROMPT, params)
        tokens = PROMPT + output.token_ids
        logits = llm.logits(tokens).astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    expected -= logits.max(1, keepdims=True)
    assert output.prompt_logprobs is not None
    assert output.logprobs is not None
    found = [*chain(output.prompt_logprobs, output.logprobs)]
    assert len(found) == len(tokens)
    for place in range(1, len(tokens)):
        entry = found[place]
        assert entry is not None
        assert next(iter(entry)) == tokens[place]
        values = [told.logprob for told in entry.values()]
        np.testing.assert_allclose(values, expected[place - 1][list(entry)], atol=1e-4)
        best = int(expected[place - 1].argmax())
        assert entry[best].rank == 1
