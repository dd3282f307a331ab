import copy
import json
import pickle

import pytest

from mindformers_glm.engine.answer import Answer, ListView, SpecialMark
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.tokenizer.replies import ParsedReply, ToolCall

CALL = ToolCall("f", "{}")


def _answer(*pieces: str) -> Answer:
    replies = [ParsedReply(piece) for piece in pieces]
    marks = ListView([SpecialMark(0, "<mark>", 0), SpecialMark(1, "<|assistant|>", 0)])
    return Answer(ListView([5, 6]), ListView([*pieces]), marks, ListView(replies))


def test_what_the_list_gets_later_is_not_in_a_prefix_of_it() -> None:
    items = [1, 2, 3]
    prefix = ListView(items)
    items += [4, 5]
    assert (len(prefix), prefix.since(0), prefix.since(2), prefix.since(3)) == (
        3,
        [1, 2, 3],
        [3],
        [],
    )


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda prefix: pickle.loads(pickle.dumps(prefix))]
)
def test_a_copy_holds_only_its_own_part(copied) -> None:  # type: ignore[no-untyped-def]
    items = ["a", "b"]
    prefix = ListView(items)
    items.append("later")
    assert copied(prefix).__dict__ == {"_items": ["a", "b"], "_length": 2}


def test_wholes_are_put_together_once() -> None:
    answer = _answer("a", "", "bc")
    assert (answer.token_ids, answer.text, answer.turn_starts) == ([5, 6], "abc", (1,))
    assert answer.reply == ParsedReply("abc")
    assert answer.text is answer.text
    assert answer.token_ids is answer.token_ids


def test_answers_are_equal_however_their_steps_were_cut() -> None:
    assert _answer("a", "bc") == _answer("abc")
    assert _answer("a") != _answer("b")
    assert _answer("a") != "a"
    assert RequestOutput("0", [1], _answer("a", "b"), [], "") == RequestOutput(
        "0", [1], _answer("ab"), [], ""
    )


def test_an_output_prints_what_it_says() -> None:
    text = repr(RequestOutput("0", [1], _answer("a", "b"), [6], "b"))
    for part in ("prompt_token_ids=[1]", "token_ids=[5, 6]", "text='ab'", "delta_text='b'"):
        assert part in text


def test_an_output_survives_pickling() -> None:
    output = RequestOutput("0", [1], _answer("a", "b"), [6], "b", "stop")
    assert pickle.loads(pickle.dumps(output)) == output


def test_joined_replies_are_their_sum() -> None:
    pieces = [ParsedReply("a", "x"), ParsedReply(), ParsedReply("b", "y", (CALL,))]
    assert (
        ParsedReply.join(pieces) == sum(pieces, ParsedReply()) == ParsedReply("ab", "xy", (CALL,))
    )
    assert ParsedReply.join([]) == ParsedReply()


def test_a_plain_form_of_an_output_has_the_whole_answer() -> None:
    answer = Answer(ListView([5, 6]), ListView(["a", "b"]), ListView([]))
    output = RequestOutput("r", [1, 2], answer, [6], "b", "stop")
    plain = json.loads(json.dumps(output.to_dict()))
    assert plain["token_ids"] == [5, 6]
    assert plain["text"] == "ab"
    assert "answer" not in plain
    assert plain["finish_reason"] == "stop"
