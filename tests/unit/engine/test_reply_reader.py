"""Answers told apart as the engine's outputs come."""

import random
from collections.abc import Sequence

from mindformers_glm.engine.answer import Answer, ListView, SpecialMark
from mindformers_glm.engine.reply_reader import ReplyReader
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.tokenizer.replies import ParsedReply, ReplyParser, ToolCall

TOOLS = [{"name": "f"}, {"name": "g"}]
TEXT = '\nokf\n{"a": 1}g\n{}'
PLACES = (3, 13)  # where <|assistant|> stood
EXPECTED = ParsedReply("ok", tool_calls=(ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")))


class _RunningRequest:
    """Makes the outputs of one answer, which share what is known of it."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._places: list[int] = []

    def output(self, length: int, places: Sequence[int], *, is_last: bool) -> RequestOutput:
        self._pieces.append(TEXT[len("".join(self._pieces)) : length])
        self._places += places[len(self._places) :]
        marks = [SpecialMark(place, "<|assistant|>", 0) for place in self._places]
        answer = Answer(ListView([]), ListView(self._pieces), ListView(marks))
        return RequestOutput("a", [], answer, [], "", "stop" if is_last else None)


def _new_reader() -> ReplyReader:
    return ReplyReader(ReplyParser("glm4", TOOLS))


def test_the_last_output_alone_is_enough() -> None:
    request = _RunningRequest()
    request.output(5, (), is_last=False)
    output = _new_reader().read(request.output(len(TEXT), PLACES, is_last=True))
    assert output.reply == output.delta_reply == EXPECTED


def test_outputs_add_up_wherever_the_steps_end() -> None:
    rng = random.Random(0)
    for _ in range(300):
        reader, request = _new_reader(), _RunningRequest()
        total = ParsedReply()
        lengths = sorted(rng.choices(range(len(TEXT)), k=rng.randint(0, 8)))
        for length in [*lengths, len(TEXT)]:
            is_last = length == len(TEXT)
            # A place may be known before the text up to it is shown.
            known = tuple(place for place in PLACES if place <= length + rng.randint(0, 3))
            made = request.output(length, PLACES if is_last else known, is_last=is_last)
            output = reader.read(made)
            assert output.delta_reply is not None
            total += output.delta_reply
            assert output.reply == total
        assert total == EXPECTED


def test_a_place_behind_a_stop_string_is_not_reached() -> None:
    output = _new_reader().read(_RunningRequest().output(12, PLACES, is_last=True))
    assert output.reply == ParsedReply('ok\nf\n{"a": 1')


def test_of_several_calls_one_is_kept_wherever_the_steps_end() -> None:
    rng = random.Random(1)
    for _ in range(50):
        request = _RunningRequest()
        reader = ReplyReader(ReplyParser("glm4", TOOLS), one_call=True)
        lengths = sorted(rng.choices(range(len(TEXT)), k=rng.randint(0, 8)))
        for length in [*lengths, len(TEXT)]:
            is_last = length == len(TEXT)
            known = PLACES if is_last else tuple(p for p in PLACES if p <= length)
            output = reader.read(request.output(length, known, is_last=is_last))
        assert output.reply == ParsedReply("ok", tool_calls=EXPECTED.tool_calls[:1])
