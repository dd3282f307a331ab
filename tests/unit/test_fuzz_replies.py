"""Generated answers of scripts/fuzz through the reply parsers."""

import random
from typing import Any

import pytest
from fuzz_replies import compare, find_faults, read_answer
from random_answers import KINDS, Kind, RandomAnswer, make_answer

from mindformers_glm.tokenizer.replies import ParsedReply, ToolCall


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_generated_answers_mean_the_same_wherever_they_are_cut(kind: Kind) -> None:
    num_calls = 0
    for number in range(25):
        rng = random.Random(f"{kind} {number}")
        answer = make_answer(rng, kind)
        assert find_faults(answer, rng, num_cuts=2) == []
        num_calls += len(answer.calls)
    assert (num_calls > 5) == (kind.tool_calls not in ("none", "chatglm2"))


def _plain(text: str, **meant: Any) -> RandomAnswer:
    empty: dict[str, Any] = {"reasoning": "", "content": "", "calls": []}
    return RandomAnswer(Kind("glm4"), True, text, **(empty | meant))


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (_plain("get_time\n{}"), "calls"),
        (_plain("get_time\n{}", calls=[("get_time", {}), ("get_time", {})]), "calls"),
        (_plain("\nget_time {}", calls=[("get_time", {})]), "calls"),
        (_plain("\na", content="b"), "text"),
        (_plain("\na", content="a", reasoning="b"), "thoughts"),
    ],
)
def test_the_check_finds_what_is_swallowed_doubled_or_invented(
    answer: RandomAnswer, fault: str
) -> None:
    assert compare(answer, read_answer(answer, [])).startswith(fault)


def test_the_check_finds_what_depends_on_the_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = (ToolCall("get_time", "{}"),)

    def read(answer: RandomAnswer, places: list[int], **_: bool) -> ParsedReply:
        return ParsedReply(tool_calls=() if len(places) > 3 else calls)

    monkeypatch.setattr("fuzz_replies.read_answer", read)
    answer = _plain("get_time\n{}", calls=[("get_time", {})])
    assert "cut at" in find_faults(answer, random.Random(0), 0)[0]
