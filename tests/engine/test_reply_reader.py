"""Answers told apart as the engine's outputs come."""

import random

from mindformers_glm.engine.reply_reader import ReplyReader
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.tokenizer.replies import ParsedReply, ReplyParser, ToolCall

TOOLS = [{"name": "f"}, {"name": "g"}]
TEXT = '\nokf\n{"a": 1}g\n{}'
PLACES = (3, 13)  # where <|assistant|> stood
EXPECTED = ParsedReply("ok", tool_calls=(ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")))


def _output(length: int, places: tuple[int, ...], *, is_last: bool) -> RequestOutput:
    reason = "stop" if is_last else None
    return RequestOutput("a", [], [], TEXT[:length], "", reason, turn_starts=places)


def _new_reader() -> ReplyReader:
    return ReplyReader(ReplyParser("glm4", TOOLS))


def test_the_last_output_alone_is_enough() -> None:
    output = _new_reader().read(_output(len(TEXT), PLACES, is_last=True))
    assert output.reply == output.delta_reply == EXPECTED


def test_outputs_add_up_wherever_the_steps_end() -> None:
    rng = random.Random(0)
    for _ in range(300):
        reader = _new_reader()
        total = ParsedReply()
        lengths = sorted(rng.choices(range(len(TEXT)), k=rng.randint(0, 8)))
        for length in [*lengths, len(TEXT)]:
            is_last = length == len(TEXT)
            # A place may be known before the text up to it is shown.
            known = tuple(place for place in PLACES if place <= length + rng.randint(0, 3))
            output = reader.read(_output(length, PLACES if is_last else known, is_last=is_last))
            assert output.delta_reply is not None
            total += output.delta_reply
            assert output.reply == total
        assert total == EXPECTED


def test_a_place_behind_a_stop_string_is_not_reached() -> None:
    output = _new_reader().read(_output(12, PLACES, is_last=True))
    assert output.reply == ParsedReply('ok\nf\n{"a": 1')
