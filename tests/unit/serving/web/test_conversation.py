"""How the web page shows a conversation, and what becomes of a turn without an answer."""

import pytest

from mindformers_glm.serving.web.conversation import Conversation, write_entries
from mindformers_glm.serving.web.words import CHINESE, ENGLISH, WORDS, choose_language
from mindformers_glm.tokenizer.replies import ParsedReply
from mindformers_glm.tokenizer.tool_call import ToolCall

_ASKED = WORDS[ENGLISH]


def test_a_stopped_answer_calls_nothing_and_a_question_without_one_goes_back() -> None:
    call = ToolCall("look", '{"at": 1}', "call_1")
    conversation = Conversation()
    conversation.add("  ")
    assert not conversation.is_asked
    conversation.add("hello")
    assert conversation.is_asked
    conversation.keep(ParsedReply("some", "", (call,)), is_stopped=True)
    assert (conversation.is_asked, conversation.open_call) == (False, "")
    conversation.add("again")
    conversation.keep(ParsedReply("", "", (call, call)), is_stopped=False)
    conversation.add("first result")
    assert (conversation.is_asked, conversation.open_call) == (False, "look")
    conversation.add("")  # a result may be empty
    assert conversation.is_asked
    assert conversation.take_back() == "again"
    assert [message["content"] for message in conversation.messages] == ["hello", "some"]


def test_thoughts_calls_and_results_can_be_folded() -> None:
    conversation = Conversation()
    conversation.add("hello")
    arguments = '{"at": "```"}'
    reply = ParsedReply("\nwait", "\nhm\n", (ToolCall("look", arguments, "c"),))
    conversation.keep(reply, is_stopped=False)
    conversation.add("<blue>")
    entries = write_entries(conversation.messages, _ASKED)
    assert [(e["role"], e["content"], e.get("metadata")) for e in entries] == [
        ("user", "hello", None),
        ("assistant", "hm", {"title": "Thoughts", "status": "done"}),
        ("assistant", "wait", None),
        ("assistant", '````json\n{\n  "at": "```"\n}\n````', {"title": "Calls look"}),
        ("assistant", "```\n<blue>\n```", {"title": "look has returned", "status": "done"}),
    ]


def test_a_thought_under_way_is_open_and_arguments_under_way_are_shown_as_they_come() -> None:
    message = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    (entry,) = write_entries([message], _ASKED, is_thinking=True)
    assert entry["metadata"] == {"title": "Thinking ..."}
    function = {"name": "look", "arguments": '{"at": "b'}
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "function": function}],
    }
    (entry,) = write_entries([message], _ASKED)
    assert entry["content"] == '```json\n{"at": "b\n```'


def test_both_languages_have_the_same_words_with_the_same_places() -> None:
    chinese, english = WORDS[CHINESE], WORDS[ENGLISH]
    assert chinese.keys() == english.keys()
    for key, text in english.items():
        assert chinese[key].count("{") == text.count("{"), key


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", CHINESE),
        ("en-US,en;q=0.9,zh;q=0.8", ENGLISH),
        ("fr, zh-TW", CHINESE),
        ("fr", ENGLISH),
        ("", ENGLISH),
    ],
)
def test_the_browsers_first_language_that_the_page_has_is_taken(
    accepted: str, language: str
) -> None:
    assert choose_language(accepted) == language
