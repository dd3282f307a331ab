"""Answers told apart, whole and cut at every place."""

import json
import random
import re
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.tokenizer.replies import (
    ParsedReply,
    ReplyParser,
    ToolCall,
    call_candidates,
    parse_reply,
)

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
TIME = {"name": "get_time", "parameters": {}}
PYTHON = {"type": "python"}
TOOLS = [WEATHER, TIME, PYTHON]
# Stands for the token <|assistant|>, which is no text.
TURN = "\x00"

Parsers = tuple[str, str, bool]
GLM4: Parsers = ("glm4", "none", False)
CHATGLM3: Parsers = ("chatglm3", "none", False)
Z1: Parsers = ("glm4", "glm_z1", True)
RUMINATION: Parsers = ("glm_z1_rumination", "glm_z1", False)


def _parser(parsers: Parsers) -> ReplyParser:
    calls, reasoning, starts_inside = parsers
    return ReplyParser(calls, TOOLS, reasoning, starts_in_reasoning=starts_inside)


def _parse(parsers: Parsers, answer: str) -> ParsedReply:
    texts = answer.split(TURN)
    turn_starts = [len("".join(texts[:index])) for index in range(1, len(texts))]
    return parse_reply("".join(texts), _parser(parsers), turn_starts)


def _stream(parsers: Parsers, pieces: list[str]) -> ParsedReply:
    parser, reply = _parser(parsers), ParsedReply()
    for piece in pieces:
        first, *others = piece.split(TURN)
        reply += parser.feed(first)
        for text in others:
            reply += parser.start_turn() + parser.feed(text)
    return reply + parser.flush()


def _call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


BEIJING = _call("get_weather", city="北京")
NOON = _call("get_time", city="Rome", at=12)
_BEIJING_3 = '```python\ntool_call(city="北京")\n```'
_NESTED = 'get_weather\n{"a": {"b": ["}", "\\"]", {}]}, "c": "\\\\"}'

_LONG = 'get_weather\n{"a": "' + "北 x" * 80

CASES: list[tuple[Parsers, str, ParsedReply]] = [
    (GLM4, "", ParsedReply()),
    (GLM4, "你好", ParsedReply("你好")),
    # The rest of the role's line is empty: it is not part of what is said.
    (GLM4, "\n你好\n\n再见\n", ParsedReply("你好\n\n再见\n")),
    (GLM4, "\n\n  a", ParsedReply("\n  a")),
    (GLM4, "  a", ParsedReply("  a")),
    (GLM4, "  \na", ParsedReply("a")),
    (GLM4, "   ", ParsedReply("   ")),
    (GLM4, 'get_weather\n{"city": "北京"}', ParsedReply(tool_calls=(BEIJING,))),
    # The 0414 templates write a blank behind the name, so the model may, too.
    (GLM4, 'get_weather \n{"city": "北京"}\n', ParsedReply(tool_calls=(BEIJING,))),
    (GLM4, '\nget_weather\n\n {"city": "北京"}', ParsedReply(tool_calls=(BEIJING,))),
    (
        GLM4,
        f'\n好的{TURN}get_weather\n{{"city": "北京"}}{TURN}get_time\n{{"city": "Rome", "at": 12}}',
        ParsedReply("好的", tool_calls=(BEIJING, NOON)),
    ),
    # Without the tokens between them, calls still end where their objects do.
    (
        GLM4,
        'get_weather\n{"city": "北京"}get_time\n{"city": "Rome", "at": 12}',
        ParsedReply(tool_calls=(BEIJING, NOON)),
    ),
    (
        GLM4,
        'I look.\nget_weather\n{"city": "北京"}\nDone.',
        ParsedReply("I look.\nDone.", tool_calls=(BEIJING,)),
    ),
    (GLM4, f"\na{TURN}\nb", ParsedReply("a\nb")),
    (GLM4, _NESTED, ParsedReply(tool_calls=(ToolCall("get_weather", _NESTED[12:]),))),
    (GLM4, "get_weather\n{}", ParsedReply(tool_calls=(ToolCall("get_weather", "{}"),))),
    # A long one begins before its end, and what has begun stays a call.
    (GLM4, _LONG + '"}', ParsedReply(tool_calls=(ToolCall("get_weather", _LONG[12:] + '"}'),))),
    (
        GLM4,
        _LONG + "\n\", 'b': [True,]}\nget_time\n{}",
        ParsedReply(
            tool_calls=(
                ToolCall("get_weather", _LONG[12:] + '\\u000a", "b": [true]}'),
                _call("get_time"),
            )
        ),
    ),
    (
        GLM4,
        _LONG + '", "b": NaN}\nx',
        ParsedReply("x", tool_calls=(ToolCall("get_weather", _LONG[12:] + '", "b": NaN}'),)),
    ),
    (
        GLM4,
        f"{_LONG}{TURN}\nx",
        ParsedReply("x", tool_calls=(ToolCall("get_weather", _LONG[12:], is_open=True),)),
    ),
    (
        GLM4,
        f'{_LONG}", "b',
        ParsedReply(tool_calls=(ToolCall("get_weather", _LONG[12:] + '", "b', is_open=True),)),
    ),
    # Not calls: everything stays.
    (GLM4, 'get_weather\n{"city": "北京"', ParsedReply('get_weather\n{"city": "北京"')),
    (GLM4, 'get_weather\n{"a": NaN}', ParsedReply('get_weather\n{"a": NaN}')),
    (GLM4, 'get_weather\n{"a": 1]}', ParsedReply('get_weather\n{"a": 1]}')),
    (GLM4, "get_weather\nis a tool", ParsedReply("get_weather\nis a tool")),
    (GLM4, "get_weather", ParsedReply("get_weather")),
    (GLM4, "get_weather ", ParsedReply("get_weather ")),
    (GLM4, "get_weather x\n{}", ParsedReply("get_weather x\n{}")),
    (GLM4, "get_rain\n{}", ParsedReply("get_rain\n{}")),
    (GLM4, 'get_weather {"a": 1}', ParsedReply('get_weather {"a": 1}')),
    # A line that is no call does not hide the call behind it.
    (
        GLM4,
        'get_weather\nget_weather\n{"city": "北京"}',
        ParsedReply("get_weather\n", tool_calls=(BEIJING,)),
    ),
    (
        GLM4,
        f'get_weather\n{{"x{TURN}get_weather\n{{"city": "北京"}}',
        ParsedReply('get_weather\n{"x', tool_calls=(BEIJING,)),
    ),
    (GLM4, "get_weather\n" + "[" * 50, ParsedReply("get_weather\n" + "[" * 50)),
    (
        GLM4,
        'get_weather\n{"a": ' + "[" * 5000,
        ParsedReply('get_weather\n{"a": ' + "[" * 5000),
    ),
    # A built-in tool takes all text of its message, but only by the role's own line.
    (
        GLM4,
        f"\n我来算{TURN}python\nprint(1)\nx = {{}}\n",
        ParsedReply("我来算", tool_calls=(ToolCall("python", '"print(1)\\nx = {}\\n"'),)),
    ),
    (GLM4, "I like\npython\nvery much", ParsedReply("I like\npython\nvery much")),
    (GLM4, "python\n", ParsedReply("python\n")),
    (GLM4, "<think>a</think>b", ParsedReply("<think>a</think>b")),
    # ChatGLM3
    (CHATGLM3, "\n 你好", ParsedReply("你好")),
    (CHATGLM3, f"get_weather\n {_BEIJING_3}", ParsedReply(tool_calls=(BEIJING,))),
    (
        CHATGLM3,
        f"\n 好的，让我们来查看今天的天气{TURN}get_weather\n{_BEIJING_3}",
        ParsedReply("好的，让我们来查看今天的天气", tool_calls=(BEIJING,)),
    ),
    (
        CHATGLM3,
        "get_time\n```python\ntool_call(city='Rome',\n  at=12)\n```",
        ParsedReply(tool_calls=(NOON,)),
    ),
    (
        CHATGLM3,
        'get_time\n```python\ntool_call(a="```", b=[True, None, {"c": -1.5}])\n```',
        ParsedReply(tool_calls=(_call("get_time", a="```", b=[True, None, {"c": -1.5}]),)),
    ),
    (
        CHATGLM3,
        "get_time\n```python\ntool_call() \t```",
        ParsedReply(tool_calls=(_call("get_time"),)),
    ),
    (
        CHATGLM3,
        'get_time\n```python\ntool_call(a=\'\\\'\\\n```\\\n)```\', b="""\n```""")```',
        ParsedReply(tool_calls=(_call("get_time", a="'```)```", b="\n```"),)),
    ),
    # The end token may come before the block is closed.
    (CHATGLM3, f"get_weather\n{_BEIJING_3[:-4]}", ParsedReply(tool_calls=(BEIJING,))),
    *(
        (CHATGLM3, text, ParsedReply(text))
        for text in (
            "get_weather\n```python\n__import__('os').system('true')\n```",
            "get_weather\n```python\ntool_call(__import__('os').getcwd())\n```",
            "get_weather\n```python\ntool_call(a=__import__('os').getcwd())\n```",
            "get_weather\n```python\ntool_call('北京')\n```",
            "get_weather\n```python\ntool_call(**{'a': 1})\n```",
            "get_weather\n```python\ntool_call(a=1).b\n```",
            "get_weather\n```python\ntool_call(a={1, 2})\n```",
            "get_weather\n```python\ntool_call(a=1e999)\n```",
            "get_weather\n```python\ntool_call(a='\\ud800')\n```",
            "get_weather\n```python\ntool_call(a=" + "[" * 500 + ")\n```",
            "get_weather\n```python\ntool_call(a=" + "-" * 9000 + "1)\n```",
            "get_weather\n```python\ntool_call(a='b'",
            "get_weather\n```json\n{}\n```",
            "get_weather\n```pyt",
            'get_weather\n{"city": "北京"}',
        )
    ),
    (CHATGLM3, "\n 到[[训练时间]]，[[训练时]]", ParsedReply("到2023年，[[训练时]]")),
    (CHATGLM3, "[[[训练时间]]][[训练", ParsedReply("[2023年][[训练")),
    (("chatglm2", "none", False), "[[训练时间]]", ParsedReply("2023年")),
    (GLM4, "[[训练时间]]", ParsedReply("[[训练时间]]")),
    (("chatglm2", "none", False), " 你好\nget_weather\n{}", ParsedReply("你好\nget_weather\n{}")),
    (("none", "none", False), "\n你好\n", ParsedReply("\n你好\n")),
    # GLM-Z1: the prompt opened the thoughts.
    (Z1, "\n想\n想\n</think>\n\n好", ParsedReply("好", "想\n想")),
    (Z1, "<think>\n想</think>好", ParsedReply("好", "想")),
    (Z1, "想 < 想 </th 想 </think", ParsedReply("", "想 < 想 </th 想 </think")),
    (Z1, "  \n", ParsedReply()),
    (Z1, "<thi", ParsedReply("", "<thi")),
    (Z1, "</think>", ParsedReply()),
    (Z1, "a</think>b</think>c", ParsedReply("b</think>c", "a")),
    (
        Z1,
        '想\n</think>\nget_weather\n{"city": "北京"}',
        ParsedReply("", "想", (BEIJING,)),
    ),
    (
        Z1,
        f'想</think>\n好{TURN}get_weather\n{{"city": "北京"}}',
        ParsedReply("好", "想", (BEIJING,)),
    ),
    (Z1, f'想{TURN}get_weather\n{{"city": "北京"}}', ParsedReply("", "想", (BEIJING,))),
    # The same model where nothing was opened.
    (("glm4", "glm_z1", False), "好</think>x", ParsedReply("好</think>x")),
    (("glm4", "glm_z1", False), "\n<think>想</think>\n好", ParsedReply("好", "想")),
    (("glm4", "glm_z1", False), " <thin", ParsedReply(" <thin")),
    # As models write them, where that has one reading only.
    (GLM4, "get_weather\n{'city': '北京'}", ParsedReply(tool_calls=(BEIJING,))),
    (GLM4, 'get_weather\r\n{"city": "北京"}\r\n', ParsedReply(tool_calls=(BEIJING,))),
    (GLM4, '\r\nget_weather \r\n{"city": "北京"}', ParsedReply(tool_calls=(BEIJING,))),
    (GLM4, "\r\n你好\r\n", ParsedReply("你好\r\n")),
    (GLM4, "\r你好", ParsedReply("\r你好")),
    (GLM4, 'get_weather\n{"city": "北京",}', ParsedReply(tool_calls=(BEIJING,))),
    (GLM4, 'get_weather\n{"city": "北京" ,\n}\n', ParsedReply(tool_calls=(BEIJING,))),
    *(
        (GLM4, f"get_time\n{written}", ParsedReply(tool_calls=(_call("get_time", **read),)))
        for written, read in (
            ('{"a": "x\ny\tz\x01"}', {"a": "x\ny\tz\x01"}),
            ('{"a": "x\r\ny", "b": [1, 2,],}', {"a": "x\r\ny", "b": [1, 2]}),
            ("{'a': 'it\\'s', 'b': 'say \"hi\"'}", {"a": "it's", "b": 'say "hi"'}),
            ("{'a': \"it's\", \"b\": '}'}", {"a": "it's", "b": "}"}),
            ("{'a': True, 'b': [False, None], 'c': {}}", {"a": True, "b": [False, None], "c": {}}),
            ("{'a': 'x\\ny', 'b': '\\u5317'}", {"a": "x\ny", "b": "北"}),
            ('{"code": "if a:\n    b(\'c\', \\"d\\")"}', {"code": "if a:\n    b('c', \"d\")"}),
        )
    ),
    *(
        (GLM4, f"get_time\n{text}", ParsedReply(f"get_time\n{text}"))
        for text in (
            "{,}",
            '{"a": 1,,}',
            '{"a": ,}',
            '{"a" 1}',
            "{'a': 'it's'}",
            "{'a': 'x' 'y'}",
            "{a: 1}",
            "{'a': '\\x41'}",
            '{"a": "\\\n"}',
            '{"a": True1}',
            "{'a'}",
            '{"a": [1 2]}',
        )
    ),
    (
        CHATGLM3,
        "get_time\r\n```python\r\ntool_call(a=\"x\ny\", b='1',)\r\n```",
        ParsedReply(tool_calls=(_call("get_time", a="x\ny", b="1"),)),
    ),
    # A name alone calls where it is a message's only line, and the model has ended the message.
    (GLM4, f"get_time{TURN}\n好", ParsedReply("好", tool_calls=(_call("get_time"),))),
    (GLM4, f"get_time \r\n\n{TURN}好", ParsedReply("好", tool_calls=(_call("get_time"),))),
    (CHATGLM3, f"get_time\n{TURN}\n 好", ParsedReply("好", tool_calls=(_call("get_time"),))),
    (GLM4, f"\nget_time{TURN}\n好", ParsedReply("get_time\n好")),
    (GLM4, f"Use\nget_time{TURN}\n好", ParsedReply("Use\nget_time\n好")),
    (GLM4, f"python{TURN}\n好", ParsedReply("python\n好")),
    (GLM4, f'get_time\n{{"a": {TURN}\n好', ParsedReply('get_time\n{"a": \n好')),
    # Rumination
    (RUMINATION, '{"name": "finish"}', ParsedReply(tool_calls=(ToolCall("finish", "{}"),))),
    (
        RUMINATION,
        "{'name': 'search', 'arguments': {'query': '北京',}}",
        ParsedReply(tool_calls=(_call("search", query="北京"),)),
    ),
    (
        RUMINATION,
        '{"name": "search", "arguments": "{\\"query\\": \\"x\\"}"}',
        ParsedReply(tool_calls=(_call("search", query="x"),)),
    ),
    (
        RUMINATION,
        '\n<think>\nI search.\n</think>\n{"name": "search", "arguments": {"query": "北京"}}',
        ParsedReply("", "I search.", (_call("search", query="北京"),)),
    ),
    (
        RUMINATION,
        '<think>x</think>{"name": "finish", "arguments": {}}',
        ParsedReply("", "x", (ToolCall("finish", "{}"),)),
    ),
    *(
        (RUMINATION, text, ParsedReply(text))
        for text in (
            '{"name": "finish", "arguments": []}',
            '{"name": "finish", "arguments": "[]"}',
            '{"name": "finish", "arguments": "{"}',
            '{"name": "finish", "arguments": {}, "id": 1}',
            '{"name": "format", "arguments": {}}',
            '{"name": ["finish"], "arguments": {}}',
            '{"name": "finish", "arguments": {',
            "{",
        )
    ),
]


@pytest.mark.parametrize(("parsers", "answer", "expected"), CASES)
def test_an_answer_is_told_apart(parsers: Parsers, answer: str, expected: ParsedReply) -> None:
    assert _parse(parsers, answer) == expected


@pytest.mark.parametrize(("parsers", "answer", "expected"), CASES)
def test_it_is_the_same_cut_at_any_place(
    parsers: Parsers, answer: str, expected: ParsedReply
) -> None:
    assert _stream(parsers, list(answer)) == expected
    for place in range(0, len(answer) + 1, max(1, len(answer) // 200)):
        assert _stream(parsers, [answer[:place], answer[place:]]) == expected


_PIECES = [
    *["get_weather", "get_time", "get_", "python", "search", "\n", "\n", " ", "{", "}", "[", "]"],
    *['{"city": "北京"}', '{"a": "\\"}"}', '"', "\\", "```", "```python\n", 'tool_call(a="b")'],
    *["\n```", "<think>", "</think>", "</th", "想", "a", TURN, TURN],
    *['{"name": "search", "arguments": {"query": "x"}}', "get_time\n{}"],
    "get_time\n```python\ntool_call(a=1)\n```",
    *["\r", "get_time\r\n", "'", ",", "{'a': 'b'}", '{"a": "x\ny",}', ",}", "get_time\n{'"],
]


@pytest.mark.parametrize("parsers", [GLM4, CHATGLM3, Z1, ("glm4", "glm_z1", False), RUMINATION])
def test_random_answers_do_not_depend_on_the_cuts(parsers: Parsers) -> None:
    rng = random.Random(0)
    num_calls = 0
    for _ in range(3000):
        answer = "".join(rng.choices(_PIECES, k=rng.randint(1, 10)))
        whole = _parse(parsers, answer)
        num_calls += len(whole.tool_calls)
        cuts = sorted(rng.choices(range(len(answer) + 1), k=rng.randint(0, 6)))
        edges = zip([0, *cuts], [*cuts, len(answer)], strict=True)
        assert _stream(parsers, [answer[start:end] for start, end in edges]) == whole, answer
        assert _stream(parsers, list(answer)) == whole, answer
        _check_nothing_is_lost(answer, whole)
    assert num_calls > 20


def _check_nothing_is_lost(answer: str, reply: ParsedReply) -> None:
    """Every visible character is in one of the three, in order, but for the tags."""
    kept = "".join(reply.reasoning.split()) + "".join(reply.content.split())
    left = iter("".join(answer.split()))
    assert all(char in left for char in kept), answer
    if not reply.tool_calls:
        tags = answer.count("<think>") + answer.count("</think>")
        visible = "".join(answer.replace(TURN, "").split())
        assert len(visible) - len(kept) in ({0, 7, 8, 15} if tags else {0}), answer


def test_plain_text_is_not_held_back() -> None:
    parser = _parser(GLM4)
    assert parser.feed("\n") == ParsedReply()
    assert parser.feed("g") == ParsedReply()  # could be get_weather
    assert parser.feed("ood") == ParsedReply("good")
    assert parser.feed("g") == ParsedReply("g")  # not at the beginning of a line


def test_thoughts_are_not_held_back() -> None:
    parser = _parser(Z1)
    assert [parser.feed(text).reasoning for text in ("\n想", "到", "\n", "了 <", "b")] == [
        *["想", "到", "", "\n了", " <b"]
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "get_weather\n```python\n" + "```" * 20000,
        "get_weather\n```python\n" + "\n```" * 20000,
        "get_weather\n```python\n" + " ```" * 20000,
        "get_weather\n```python\ntool_call(" + ")```" * 20000,
    ],
    ids=["one line", "lines", "blanks", "brackets"],
)
def test_fences_without_end_are_not_all_tried(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_characters = 0

    def count(code: str) -> None:
        nonlocal num_characters
        num_characters += len(code)

    monkeypatch.setattr(call_candidates, "_read_python_call", count)
    assert _parse(CHATGLM3, answer) == ParsedReply(answer)
    assert num_characters <= 2 * len(answer)


def test_a_call_comes_when_it_is_complete() -> None:
    parser = _parser(GLM4)
    assert parser.feed('get_weather\n{"city": "北京"') == ParsedReply()
    assert parser.feed("}") == ParsedReply(tool_calls=(BEIJING,))


def test_a_function_called_python_takes_arguments() -> None:
    tools = [{"type": "function", "function": {"name": "python"}}]
    found = parse_reply('python\n{"code": "1"}', ReplyParser("glm4", tools))
    assert found == ParsedReply(tool_calls=(_call("python", code="1"),))


def test_without_tools_there_are_no_calls() -> None:
    text = 'get_weather\n{"city": "北京"}'
    assert parse_reply(text, ReplyParser("glm4")) == ParsedReply(text)


@pytest.mark.parametrize(
    ("name", "of"),
    [("chatglm3_6b", "chatglm3"), ("glm_4", "glm4"), ("glm_4_9b", "glm4"), ("chatglm4_9b", "glm4")],
)
def test_names_of_other_servers_are_known(name: str, of: str) -> None:
    answer = f'get_weather\n{_BEIJING_3}\nget_weather\n{{"city": "北京"}}'
    found = parse_reply(answer, ReplyParser(name, TOOLS))
    assert found == parse_reply(answer, ReplyParser(of, TOOLS))
    assert found.tool_calls


@pytest.mark.parametrize("names", [("glm5", "none"), ("glm4", "deep")])
def test_unknown_parsers_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"_parser must be one of .*, got '(glm5|deep)'"):
        ReplyParser(names[0], reasoning_parser=names[1])


_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|assistant|>", "<mark>")
_TAG = re.compile(f"({'|'.join(map(re.escape, _TAGS))})")
# "~" stands for "<" that the answer spells: no token.
TOKEN_CASES: list[tuple[bool, str, ParsedReply]] = [
    (True, "\n想\n</think>\n\n好", ParsedReply("好", "想")),
    (False, "<think>想</think>好", ParsedReply("好", "想")),
    (False, "\n <think>\n想", ParsedReply("", "想")),
    (True, "想~/think>想</think>好", ParsedReply("好", "想</think>想")),
    (False, "~think>x~/think>好", ParsedReply("<think>x</think>好")),
    (True, "</think>好", ParsedReply("好")),
    (True, "a</think>b</think>c", ParsedReply("bc", "a")),
    (False, "好<think>的</think>x", ParsedReply("好的x")),
    (True, "a<think>b<mark>c</think>d", ParsedReply("d", "abc")),
    (False, "\n你好<mark>四", ParsedReply("你好四")),
    (False, "<mark>\n你好", ParsedReply("你好")),
    (False, "你<mark>\n好<mark>", ParsedReply("你\n好")),
    (False, 'get_weather<mark>\n{"city": "北京"}<mark>', ParsedReply(tool_calls=(BEIJING,))),
    (
        False,
        '好<tool_call>get_weather\n{"city": "北京"}</tool_call>',
        ParsedReply("好", "", (BEIJING,)),
    ),
    (
        True,
        '想</think>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n'
        "</tool_call>\n好",
        ParsedReply("好", "想", (BEIJING,)),
    ),
    (
        False,
        'get_weather\n{"city": "北京"}<|assistant|>get_time\n{"city": "Rome", "at": 12}',
        ParsedReply(tool_calls=(BEIJING, NOON)),
    ),
    (False, "<tool_call>好</tool_call>的", ParsedReply("好的")),
    (False, 'a<tool_call>{"name": "x"}', ParsedReply('a{"name": "x"}')),
    (False, "a<tool_call>get_weather\n{", ParsedReply("aget_weather\n{")),
]


@pytest.mark.parametrize(("starts_inside", "answer", "expected"), TOKEN_CASES)
def test_tags_that_are_tokens_are_found_by_their_id(
    starts_inside: bool, answer: str, expected: ParsedReply
) -> None:
    pieces = [piece for piece in _TAG.split(answer) if piece]
    for size in (1, 2, 3, 1000):
        parser = ReplyParser(
            "glm4", TOOLS, "glm_z1", starts_in_reasoning=starts_inside, special_tokens=_TAGS
        )
        reply = ParsedReply()
        for piece in pieces:
            if piece in _TAGS:
                reply += parser.feed_token(piece)
                continue
            text = piece.replace("~", "<")
            for start in range(0, len(text), size):
                reply += parser.feed(text[start : start + size])
        assert reply + parser.flush() == expected


def test_without_a_reasoning_parser_tags_have_no_text() -> None:
    parser = ReplyParser("glm4", TOOLS, special_tokens=_TAGS)
    reply = parser.feed("a") + parser.feed_token("<think>") + parser.feed("b")
    assert reply + parser.feed_token("</think>") + parser.flush() == ParsedReply("ab")


def test_a_name_alone_is_a_call_only_at_the_end_that_the_model_set() -> None:
    for text in ("get_time", "get_time\n", "get_time \r\n"):
        parser = _parser(GLM4)
        assert parser.feed(text) + parser.flush() == ParsedReply(text)
        parser = _parser(GLM4)
        found = parser.feed(text) + parser.flush(is_complete=True)
        assert found == ParsedReply(tool_calls=(_call("get_time"),))


def test_a_name_alone_does_not_call_what_needs_arguments() -> None:
    tool = {"name": "f", "parameters": {"type": "object", "required": ["a"]}}
    for wrapped in (tool, {"type": "function", "function": tool}):
        parser = ReplyParser("glm4", [wrapped])
        assert parser.feed("f") + parser.flush(is_complete=True) == ParsedReply("f")


def test_no_call_is_read_where_none_is_wanted() -> None:
    for parsers in (GLM4, RUMINATION):
        text = '{"name": "search", "arguments": {}}' if parsers is RUMINATION else "get_time\n{}"
        parser = ReplyParser(parsers[0], TOOLS, calls_tools=False)
        assert parse_reply(text, parser) == ParsedReply(text)


def test_a_long_call_grows_piece_by_piece() -> None:
    parser = _parser(GLM4)
    pieces = [parser.feed(char).tool_calls for char in _LONG + '"}']
    calls = [call for piece in pieces for call in piece]
    assert (calls[0].name, calls[0].is_open) == ("get_weather", True)
    assert len(calls[0].arguments) < 250
    assert len(calls) > 40
    assert {call.name for call in calls[1:]} == {""}
    assert [call.is_open for call in calls[-2:]] == [True, False]
