"""`LLM.logits` and `LLM.logits_chunks` on the fake runner."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindformers_glm.core.errors import GlmError, MemoryBudgetError, PromptError
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.e2e.random_checkpoint import CONTEXT
from tests.engine.conftest import SHORT, VOCAB
from tests.engine.fake_runner import FakeRunner


def test_logits_are_those_of_every_row_whatever_the_chunks(checkpoint: Path) -> None:
    token_ids = list(range(50))
    runner = FakeRunner(VOCAB)
    expected = np.array([runner._hash(np.arange(n + 1)) for n in range(50)], np.float32)
    for budget in (512, 7, 50):
        llm = LLM(checkpoint, max_num_batched_tokens=budget)
        found = llm.logits(token_ids)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_logits_do_not_disturb_a_stream(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    expected = list(llm.stream("abc", SHORT))[-1].token_ids
    stream = llm.stream("abc", SHORT)
    next(stream)
    llm.logits([1, 2, 3])
    assert list(stream)[-1].token_ids == expected


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [([], "empty"), ([VOCAB], "outside the vocabulary"), ([1] * (CONTEXT + 1), "65 tokens")],
)
def test_logits_of_bad_tokens_are_refused(
    checkpoint: Path, token_ids: list[int], message: str
) -> None:
    llm = LLM(checkpoint)
    for call in (llm.logits, lambda token_ids: next(llm.logits_chunks(token_ids))):
        with pytest.raises(PromptError, match=message):
            call(token_ids)


def test_logits_of_a_full_context_are_possible(checkpoint: Path) -> None:
    assert LLM(checkpoint).logits([1] * CONTEXT).shape == (CONTEXT, VOCAB)


def test_logits_of_no_list_are_refused(checkpoint: Path) -> None:
    with pytest.raises(PromptError, match="Token ids must be a list of whole numbers, got a None"):
        LLM(checkpoint).logits(None)  # type: ignore[arg-type]


def test_chunks_are_the_rows_of_logits_one_step_each(checkpoint: Path) -> None:
    llm = LLM(checkpoint, max_num_batched_tokens=7)
    token_ids = list(range(50))
    chunks = list(llm.logits_chunks(token_ids))
    assert [len(chunk) for chunk in chunks] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.concatenate(chunks), llm.logits(token_ids))
    assert llm.engine.runner.rows_per_step == [len(chunk) for chunk in chunks] * 2
    assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_a_chunk_is_computed_when_it_is_wanted(checkpoint: Path) -> None:
    llm = LLM(checkpoint, max_num_batched_tokens=7)
    chunks = llm.logits_chunks(range(50))
    assert llm.engine.runner.rows_per_step == []
    next(chunks)
    assert llm.engine.runner.rows_per_step == [7]
    assert llm.engine.pool.num_free < llm.engine.pool.num_blocks


@pytest.mark.parametrize("how", ["closed", "dropped", "failed"])
def test_chunks_left_early_give_their_blocks_back(
    checkpoint: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(checkpoint, max_num_batched_tokens=7)
    chunks = llm.logits_chunks(range(50))
    next(chunks)
    if how == "closed":
        chunks.close()
    elif how == "dropped":
        del chunks
    else:
        monkeypatch.setattr(llm.engine.runner, "execute", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(chunks)
    assert llm.engine.pool.num_free == llm.engine.pool.num_blocks
    assert llm.engine.num_tokens_under_way == {}


def test_requests_may_run_between_chunks(checkpoint: Path) -> None:
    llm = LLM(checkpoint, max_num_batched_tokens=7)
    expected = llm.logits(range(30))
    alone = llm.generate("abc", SHORT)[0].token_ids
    found = []
    for chunk in llm.logits_chunks(range(30)):
        found.append(chunk)
        assert llm.generate("abc", SHORT)[0].token_ids == alone
    np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("num_measured", [CONTEXT, CONTEXT - 8])
def test_requests_that_lack_the_blocks_of_chunks_end_instead_of_waiting(
    checkpoint: Path, num_measured: int
) -> None:
    llm = LLM(checkpoint, max_num_seqs=1, max_num_batched_tokens=32, block_size=4)
    chunks = llm.logits_chunks([1] * num_measured)
    next(chunks)
    if num_measured == CONTEXT:  # nothing is left
        with pytest.raises(MemoryBudgetError, match=r"hold 16 of the 16 KV-cache blocks.*close"):
            llm.generate("abc", SHORT)
    else:
        (output,) = llm.generate("abc", SamplingParams(max_new_tokens=9, ignore_eos=True))
        room = "9 tokens, what unfinished logits_chunks leave of the KV cache has room for 8"
        assert room in (output.error or "")
    assert not llm.engine.has_unfinished()
    chunks.close()
    assert llm.generate("abc", SHORT)[0].error is None


def test_chunks_of_a_closed_llm_say_so(checkpoint: Path) -> None:
    with LLM(checkpoint, max_num_batched_tokens=7) as llm:
        chunks = llm.logits_chunks(range(50))
        next(chunks)
    with pytest.raises(GlmError, match="This LLM is closed"):
        next(chunks)


def test_logits_interrupted_between_chunks_give_their_blocks_back(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def __setitem__(self, *_: object) -> None:
            raise KeyboardInterrupt

    llm = LLM(checkpoint, max_num_batched_tokens=4)
    num_free = llm.engine.pool.num_free
    numpy = SimpleNamespace(empty=lambda *_: Interrupted(), float32=np.float32, random=np.random)
    monkeypatch.setattr("mindformers_glm.engine.row_logits.np", numpy)
    with pytest.raises(KeyboardInterrupt) as held:  # as a notebook holds on to it
        llm.logits(list(range(12)))
    assert (llm.engine.pool.num_free, llm.engine.measured) == (num_free, [])
    assert held.tb is not None
