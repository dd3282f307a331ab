"""One `LLM` in several threads: one at a time, and a clear sentence for the others."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.core.errors import GlmError
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.one_thread import OneThread
from tests.engine.conftest import SHORT
from tests.engine.fake_runner import FakeRunner

_CALLS: dict[str, Callable[[LLM], object]] = {
    "generate": lambda llm: llm.generate("b", SHORT),
    "stream": lambda llm: list(llm.stream("b", SHORT)),
    "logits": lambda llm: llm.logits([1, 2]),
    "logits_chunks": lambda llm: list(llm.logits_chunks([1, 2])),
    "warm_up": lambda llm: llm.warm_up(),
    "close": lambda llm: llm.close(),
}


@pytest.mark.parametrize("name", _CALLS)
def test_a_thread_that_comes_in_the_middle_of_a_step_is_refused(
    name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_inside, may_go_on = threading.Event(), threading.Event()
    execute = FakeRunner.execute

    def wait_inside(runner: FakeRunner, batch: ModelBatch) -> np.ndarray:
        is_inside.set()
        may_go_on.wait(10)
        return execute(runner, batch)

    llm = LLM(checkpoint)
    expected = llm.generate("a", SHORT)[0].token_ids
    monkeypatch.setattr(FakeRunner, "execute", wait_inside)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(llm.generate, "a", SHORT)
        is_inside.wait(10)
        with pytest.raises(GlmError, match="Another thread is using this LLM"):
            _CALLS[name](llm)
        may_go_on.set()
        assert first.result()[0].token_ids == expected
    assert llm.generate("a", SHORT)[0].token_ids == expected
    assert llm.engine.pool.num_free == llm.engine.config.num_blocks


def test_many_threads_get_right_answers_or_the_sentence(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    expected = {text: llm.generate(text, SHORT)[0].token_ids for text in "abcd"}

    def ask(text: str) -> bool:
        try:
            found = llm.generate(text, SHORT)[0].token_ids
        except GlmError:
            return False
        assert found == expected[text]
        return True

    with ThreadPoolExecutor(4) as pool:
        assert any(pool.map(ask, "abcd" * 50))
    assert llm.engine.num_tokens_under_way == {}


def test_threads_may_take_turns(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    stream = llm.stream("abc", SHORT)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        (other,) = pool.submit(llm.generate, "b", SHORT).result()
        *_, last = pool.submit(list, stream).result()
    assert last.token_ids == LLM(checkpoint).generate("abc", SHORT)[0].token_ids
    assert other.finished


def test_a_stream_that_is_dropped_in_the_middle_of_a_step_ends_behind_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(checkpoint)
    expected = llm.generate("b", SHORT)[0].token_ids
    stream = llm.stream("abc", SHORT)
    next(stream)
    execute = FakeRunner.execute

    def drop(runner: FakeRunner, batch: ModelBatch) -> np.ndarray:
        stream.close()  # as the garbage collector does wherever it runs
        return execute(runner, batch)

    monkeypatch.setattr(FakeRunner, "execute", drop)
    assert llm.generate("b", SHORT)[0].token_ids == expected
    assert llm.engine.num_tokens_under_way == {}
    assert llm.engine.pool.num_free == llm.engine.config.num_blocks


def test_what_fails_at_the_end_keeps_no_thread_out() -> None:
    def fail() -> None:
        raise ValueError("at the end")

    one_thread = OneThread()
    with pytest.raises(ValueError, match="at the end"), one_thread:
        one_thread.run_when_free(fail)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(one_thread.__enter__).result() is None
