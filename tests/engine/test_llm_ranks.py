"""What the ranks of one `LLM` compare, and when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.conftest import SHORT, FakeBackend


class _OtherRank:
    """Answers what this rank says, or something else."""

    def __init__(self) -> None:
        self.is_different = False
        self.num_gathers = 0
        self.last: list[int] = []

    def gather(self, values: np.ndarray) -> np.ndarray:
        self.num_gathers += 1
        self.last = values.tolist()
        return np.stack([values, values + self.is_different])


@pytest.fixture
def other_rank(backend: FakeBackend) -> _OtherRank:
    rank = _OtherRank()
    backend.gather = rank.gather
    return rank


def test_ranks_that_differ_are_told_before_loading(
    checkpoint: Path, backend: FakeBackend, other_rank: _OtherRank
) -> None:
    other_rank.is_different = True
    with pytest.raises(ConfigError, match=r"rank 1 has other .*weights.*seed.* than rank 0"):
        LLM(checkpoint)
    assert backend.settings == []


def _calls(llm: LLM) -> dict[str, Callable[[], Any]]:
    return {
        "generate": lambda: llm.generate(["abc", "de", [5, 6], ""], SHORT),
        "stream": lambda: list(llm.stream("abc", SHORT)),
        "logits": lambda: llm.logits([5, 6]),
        "logits_chunks": lambda: list(llm.logits_chunks([5, 6])),
    }


@pytest.mark.parametrize("call", ["generate", "stream", "logits", "logits_chunks"])
def test_ranks_compare_once_a_call_and_never_in_a_step(
    checkpoint: Path, other_rank: _OtherRank, call: str
) -> None:
    llm = LLM(checkpoint)
    other_rank.num_gathers = 0
    _calls(llm)[call]()
    assert other_rank.num_gathers == 1
    assert not llm._requests


@pytest.mark.parametrize("call", ["generate", "stream", "logits", "logits_chunks"])
def test_ranks_that_are_asked_different_things_are_told_before_the_first_step(
    checkpoint: Path, other_rank: _OtherRank, call: str
) -> None:
    llm = LLM(checkpoint)
    other_rank.is_different = True
    with pytest.raises(ConfigError, match=r"rank 1 has other prompts.*than rank 0"):
        _calls(llm)[call]()
    assert llm.engine.runner.rows_per_step == []
    assert not llm.engine.has_unfinished()
    other_rank.is_different = False
    assert llm.generate("abc", SHORT)[0].finish_reason == "length"


def test_what_ranks_compare_depends_on_streams_under_way_alone(
    checkpoint: Path, other_rank: _OtherRank
) -> None:
    llm = LLM(checkpoint)
    llm.generate("abc", SHORT)
    idle = other_rank.last
    stream = llm.stream("x", SHORT)
    next(stream)
    llm.generate("abc", SHORT)
    assert [mine == other for mine, other in zip(idle, other_rank.last, strict=True)] == [
        True,
        True,
        False,
    ]
    stream.close()
    llm.generate("abc", SHORT)
    assert other_rank.last == idle


def test_what_ranks_compare_tells_how_far_chunks_of_logits_were_read(
    checkpoint: Path, other_rank: _OtherRank
) -> None:
    llm = LLM(checkpoint, max_num_batched_tokens=2)
    said = []
    chunks = llm.logits_chunks([5, 6, 7, 8, 9])
    for _ in range(3):
        llm.generate("abc", SHORT)
        said.append(tuple(other_rank.last))
        next(chunks)
    assert len(set(said)) == 3
    chunks.close()
    llm.generate("abc", SHORT)
    assert tuple(other_rank.last) == said[0]


def test_a_rank_that_asks_for_logits_differs_from_one_that_asks_for_an_answer(
    checkpoint: Path, other_rank: _OtherRank
) -> None:
    llm = LLM(checkpoint)
    llm.generate([5, 6], SamplingParams())
    answer = other_rank.last
    llm.logits([5, 6])
    assert other_rank.last[:2] == answer[:2]  # prompts and sampling settings
    assert other_rank.last != answer


def test_ranks_compare_the_form_of_answers(checkpoint: Path, other_rank: _OtherRank) -> None:
    pytest.importorskip("llguidance")
    llm = LLM(checkpoint)
    said = []
    for form in (None, {"choice": ["a"]}, {"choice": ["b"]}, {"choice": ["b"]}):
        llm.generate("abc", SamplingParams(structured_outputs=form, max_tokens=2))
        said.append(tuple(other_rank.last))
    assert len({*said[:3]}) == 3
    assert said[2] == said[3]
