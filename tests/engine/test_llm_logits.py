"""`LLM.logits` on the fake runner."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine.llm import LLM
from tests.e2e.random_checkpoint import CONTEXT
from tests.engine.conftest import SHORT, VOCAB
from tests.engine.fake_runner import FakeRunner


def test_logits_are_those_of_every_row_whatever_the_chunks(folder: Path) -> None:
    token_ids = list(range(50))
    runner = FakeRunner(VOCAB)
    expected = np.array([runner._hash(np.arange(n + 1)) for n in range(50)], np.float32)
    for budget in (512, 7, 50):
        llm = LLM(folder, max_num_batched_tokens=budget)
        found = llm.logits(token_ids)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_logits_do_not_disturb_a_stream(folder: Path) -> None:
    llm = LLM(folder)
    expected = list(llm.stream("abc", SHORT))[-1].token_ids
    stream = llm.stream("abc", SHORT)
    next(stream)
    llm.logits([1, 2, 3])
    assert list(stream)[-1].token_ids == expected


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [([], "empty"), ([VOCAB], "outside the vocabulary"), ([1] * (CONTEXT + 1), "65 tokens")],
)
def test_logits_of_bad_tokens_are_refused(folder: Path, token_ids: list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        LLM(folder).logits(token_ids)


def test_logits_of_a_full_context_are_possible(folder: Path) -> None:
    assert LLM(folder).logits([1] * CONTEXT).shape == (CONTEXT, VOCAB)


def test_logits_of_no_list_are_refused(folder: Path) -> None:
    with pytest.raises(PromptError, match="Token ids must be a list of whole numbers, got a None"):
        LLM(folder).logits(None)  # type: ignore[arg-type]
