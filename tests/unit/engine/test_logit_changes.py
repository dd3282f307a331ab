"""Penalties, bias and bad words: against Hugging Face where it has them, else their definition."""

import random
from typing import Any

import numpy as np
import pytest

from mindformers_glm.engine.logit_changes import change_logits
from mindformers_glm.engine.sequence import Sequence
from tests.unit.engine.make_sequence import make_sequence

SIZE = 12


def _logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, SIZE).astype(np.float32)


def test_nothing_is_copied_where_nothing_changes() -> None:
    logits = _logits()
    assert change_logits(logits, make_sequence([1], [2], temperature=0.5, logprobs=3)) is logits


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (-2.0, 2.0), (2, -1)])
def test_frequency_and_presence_count_the_tokens_of_the_answer(
    frequency: float, presence: float
) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        prompt, answer = ([rng.randrange(SIZE) for _ in range(rng.randint(1, 9))] for _ in "pa")
        sequence = make_sequence(
            prompt, answer, frequency_penalty=frequency, presence_penalty=presence
        )
        expected = _logits(seed).astype(np.float64)
        for token_id in range(SIZE):
            count = answer.count(token_id)
            expected[token_id] -= frequency * count + presence * (count > 0)
        np.testing.assert_allclose(change_logits(_logits(seed), sequence), expected, rtol=1e-5)


def test_nothing_generated_nothing_penalized() -> None:
    sequence = make_sequence([1, 2, 3], frequency_penalty=2.0, presence_penalty=2.0)
    np.testing.assert_array_equal(change_logits(_logits(), sequence), _logits())


def test_bias_is_added_as_transformers_adds_it() -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import SequenceBiasLogitsProcessor

    bias = {0: 2.5, 7: -100.0, 11: 0.25}
    processor = SequenceBiasLogitsProcessor({(token_id,): by for token_id, by in bias.items()})
    expected = processor(torch.tensor([[1]]), torch.from_numpy(_logits())[None])[0].numpy()
    found = change_logits(_logits(), make_sequence([1], logit_bias=bias))
    np.testing.assert_array_equal(found, expected)


def test_bias_comes_before_the_repetition_penalty() -> None:
    sequence = make_sequence([3], logit_bias={3: 5.0}, repetition_penalty=2.0)
    logits = np.full(SIZE, -1.0, np.float32)
    assert change_logits(logits, sequence)[3] == 2.0  # (-1 + 5) / 2, not -1 * 2 + 5


def _with_bad_words(answer: list[int], bad_words: list[list[int]], **params: Any) -> Sequence:
    sequence = make_sequence([1, 2], answer, **params)
    sequence.bad_words = bad_words
    return sequence


def test_bad_words_are_those_of_transformers_within_the_answer() -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import NoBadWordsLogitsProcessor

    for seed in range(200):
        rng = random.Random(seed)
        words = [
            [rng.randrange(4) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 3))
        ]
        # Hugging Face does not look for words longer than what is there.
        answer = [rng.randrange(4) for _ in range(rng.randint(4, 8))]
        processor = NoBadWordsLogitsProcessor(words)
        expected = processor(torch.tensor([answer]), torch.from_numpy(_logits())[None])[0].numpy()
        found = change_logits(_logits(), _with_bad_words(answer, words))
        np.testing.assert_array_equal(found, expected, str((words, answer)))


def test_a_bad_word_that_the_prompt_began_is_none() -> None:
    found = change_logits(_logits(), _with_bad_words([], [[2, 5]]))  # the prompt ends with 2
    np.testing.assert_array_equal(found, _logits())


def test_what_is_forbidden_stays_so_whatever_is_added() -> None:
    sequence = _with_bad_words(
        [4],
        [[4, 5]],
        logit_bias={5: 100.0},
        repetition_penalty=0.5,
        presence_penalty=-2.0,
        frequency_penalty=-2.0,
    )
    assert change_logits(_logits(), sequence)[5] == -np.inf
