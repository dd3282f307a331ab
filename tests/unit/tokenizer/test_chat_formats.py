"""The family's chat formats against its templates, and against what was published of them."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.tokenizer.chat import CHAT_FORMATS, write_chat
from mindformers_glm.tokenizer.chat.official_prompts import RUMINATION_SYSTEM
from mindformers_glm.tokenizer.replies import ParsedReply, ReplyParser, ToolCall, parse_reply
from mindformers_glm.tokenizer.segments import Segment, SpecialToken
from tests.unit.tokenizer.conftest import random_text

Messages = list[dict[str, Any]]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "查天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
USER = {"role": "user", "content": "你好"}


def _text(segments: list[Segment]) -> str:
    return "".join(s.name if isinstance(s, SpecialToken) else s for s in segments)


def _openai_call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def _render(template: str, messages: Messages, tools: list[Any] | None, trained: Tokenizer) -> str:
    """Hugging Face's rendering of a template."""
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast(tokenizer_object=trained)
    return oracle.apply_chat_template(
        messages, tools=tools, chat_template=template, add_generation_prompt=True, tokenize=False
    )


def _random_tool(rng: random.Random) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": rng.choice(["f", "get_weather", "查询"]),
        "parameters": {
            "b": [1, 2.5, None, {}],
            "a": {"<&'\"": random_text(rng, with_specials=True)},
        },
    }
    return {"type": "function", "function": function}


def _random_messages(rng: random.Random) -> Messages:
    messages: Messages = []
    for _ in range(rng.randint(1, 6)):
        role = rng.choice(["system", "user", "assistant", "observation"])
        content = random_text(rng, with_specials=True)
        if rng.random() < 0.3:
            content += "</think>" + random_text(rng, with_specials=True)
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and rng.random() < 0.5:
            message["metadata"] = rng.choice(["f", "get_weather", ""])
        messages.append(message)
    return messages


def _read_template(fixtures: Path, name: str) -> str:
    text = (fixtures / "tokenizers" / "templates" / name).read_text(encoding="utf-8")
    return text[text.index("[gMASK]") :]  # the copy begins with a note


def test_glm4_chat_writes_what_the_published_template_does(
    shared_fixtures: Path, trained: Tokenizer
) -> None:
    template = _read_template(shared_fixtures, "glm-4-9b-chat.jinja")
    rng = random.Random(0)
    for _ in range(300):
        messages = _random_messages(rng)
        if rng.random() < 0.5:
            built_in = [{"type": name} for name in ("python", "simple_browser", "cogview")]
            tools = rng.sample([*built_in, _random_tool(rng), _random_tool(rng)], rng.randint(0, 3))
            content = rng.choice(["", "x"])
            messages.insert(0, {"role": "system", "content": content, "tools": tools})
        found = _text(write_chat("glm4_chat", messages))
        assert found == _render(template, messages, None, trained)


def test_tools_of_glm4_chat_can_be_given_apart(shared_fixtures: Path, trained: Tokenizer) -> None:
    template = _read_template(shared_fixtures, "glm-4-9b-chat.jinja")
    with_tools = [{"role": "system", "content": "", "tools": [WEATHER]}, USER]
    found = _text(write_chat("glm4_chat", [USER], [WEATHER]))
    assert found == _render(template, with_tools, None, trained)


def test_glm_z1_writes_what_the_copied_template_does(
    shared_fixtures: Path, trained: Tokenizer
) -> None:
    template = _read_template(shared_fixtures, "glm-z1-0414.jinja.txt")
    rng = random.Random(0)
    for _ in range(300):
        messages = _random_messages(rng)
        for message in messages:  # the template cuts texts that hold no thoughts as well
            if message["role"] != "assistant" or message.get("metadata"):
                message["content"] = message["content"].replace("</think>", "")
        tools = [_random_tool(rng) for _ in range(rng.randint(0, 2))]
        if rng.random() < 0.5:
            tools = [tool["function"] for tool in tools]
        found = _text(write_chat("glm_z1", messages, tools))
        assert found == _render(template, messages, tools, trained)


# The text behind [gMASK]<sop> for one conversation each, by hand: of ChatGLM2 from build_prompt of
# its tokenizer, of ChatGLM3 from PROMPT.md of its repository, of 0414 and Rumination from their
# templates as found in GGUF files, rendered by Hugging Face.
_TALK: Messages = [
    {"role": "system", "content": "短"},
    {"role": "user", "content": "天气？"},
    {
        "role": "assistant",
        "content": "好",
        "tool_calls": [_openai_call("get_weather", '{"city": "北京", "days": [1, true]}')],
    },
    {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "晴"}]},
    {"role": "assistant", "content": "晴天"},
    {"role": "user", "content": "谢谢"},
]
_PLAIN = [_TALK[1], _TALK[4], _TALK[5]]
_CALL_JSON = '{"city": "北京", "days": [1, true]}'
_FUNCTION_JSON = json.dumps(WEATHER["function"], ensure_ascii=False, indent=4)
_EXPECTED = {
    "chatglm2": (
        _PLAIN,
        None,
        "[Round 1]\n\n问：天气？\n\n答：晴天\n\n[Round 2]\n\n问：谢谢\n\n答：",
    ),
    "chatglm3": (
        _TALK,
        [WEATHER],
        "<|system|>\nAnswer the following questions as best as you can. You have access to the "
        "following tools:\n"
        + json.dumps([WEATHER["function"]], ensure_ascii=False, indent=4)
        + "<|system|>\n短<|user|>\n天气？<|assistant|>\n好<|assistant|>get_weather\n"
        '```python\ntool_call(city="北京", days=[1, True])\n```'
        "<|observation|>\n晴<|assistant|>\n晴天<|user|>\n谢谢<|assistant|>",
    ),
    "glm4_chat": (
        _TALK,
        None,
        f"<|system|>\n短<|user|>\n天气？<|assistant|>\n好<|assistant|>get_weather\n{_CALL_JSON}"
        "<|observation|>\n晴<|assistant|>\n晴天<|user|>\n谢谢<|assistant|>",
    ),
    "glm4_0414": (
        _TALK,
        [WEATHER, WEATHER["function"]],
        f"<|system|>\n# 可用工具\n\n## get_weather\n\n{_FUNCTION_JSON}\n"
        f"在调用上述函数时，请使用 Json 格式表示调用的参数。\n## get_weather\n\n{_FUNCTION_JSON}\n"
        "在调用上述函数时，请使用 Json 格式表示调用的参数。<|system|>\n短<|user|>\n天气？"
        f"<|assistant|>\n好<|assistant|>get_weather \n{_CALL_JSON}"
        "<|observation|>\n晴<|assistant|>\n晴天<|user|>\n谢谢<|assistant|>",
    ),
    "glm_z1": (
        [*_TALK[1:4], {"role": "assistant", "content": "\n想</think>\n晴天\n"}, _TALK[5]],
        None,
        f"<|user|>\n天气？<|assistant|>\n好<|assistant|>get_weather\n{_CALL_JSON}"
        "<|observation|>\n晴<|assistant|>\n晴天<|user|>\n谢谢<|assistant|>\n<think>",
    ),
    "glm_z1_rumination": (
        [
            _TALK[1],
            {"role": "assistant", "tool_calls": [_openai_call("search", '{"query":"北京"}')]},
            {"role": "observation", "content": "晴"},
        ],
        None,
        f"<|system|>\n{RUMINATION_SYSTEM}<|user|>\n天气？<|assistant|>\n"
        '{"name": "search", "arguments": {"query": "北京"}}<|observation|>\n晴<|assistant|>',
    ),
}


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_a_conversation_is_written_as_published(name: str) -> None:
    messages, tools, expected = _EXPECTED[name]
    sop = "sop" if name.startswith("chatglm") else "<sop>"
    assert _text(write_chat(name, messages, tools)) == "[gMASK]" + sop + expected


def test_the_system_text_of_rumination_is_the_published_one() -> None:
    # Of the text in the chat_template that a conversion of GLM-Z1-Rumination-32B-0414 printed.
    published = "f0d888384f56615323a03e8284faef2a1cd47855eaf4b11af775483e7d2b4b59"
    assert hashlib.sha256(RUMINATION_SYSTEM.encode()).hexdigest() == published


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_special_tokens_never_come_out_of_text(name: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        texts = [random_text(rng, with_specials=True) for _ in range(3)]
        messages: Messages = [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant", "user"), texts, strict=True)
        ]
        segments = write_chat(name, messages)
        found = [segment.name for segment in segments if isinstance(segment, SpecialToken)]
        if name == "chatglm2":
            assert found == ["[gMASK]", "sop"]
        elif name == "glm4_chat":  # leaves empty messages out
            assert set(found[2:]) <= {"<|user|>", "<|assistant|>"}
            assert len(found) == 3 + sum(map(bool, texts))
        else:
            assert [n for n in found[2:] if n != "<|system|>"] == [
                *["<|user|>", "<|assistant|>", "<|user|>", "<|assistant|>"]
            ]


def test_a_line_and_a_content_of_chatglm3_are_tokenized_apart() -> None:
    # Golden ids: 64790 64792 64795 30910 13 36474 54591 64796.
    assert write_chat("chatglm3", [USER]) == [
        *[SpecialToken("[gMASK]"), SpecialToken("sop"), SpecialToken("<|user|>"), "\n", "你好"],
        SpecialToken("<|assistant|>"),
    ]


_ANSWERS = [
    ParsedReply("晴天"),
    ParsedReply("晴\n\n天\n"),
    ParsedReply(
        tool_calls=(ToolCall("get_weather", '{"city": "北京", "x": [1.5, null, "\\n\\""]}'),)
    ),
    ParsedReply(
        "我看",
        tool_calls=(ToolCall("get_weather", "{}"), ToolCall("get_weather", '{"a": {"b": false}}')),
    ),
]


@pytest.mark.parametrize("name", ["chatglm3", "glm4_chat", "glm4_0414", "glm_z1"])
@pytest.mark.parametrize("answer", _ANSWERS)
def test_an_answer_that_was_written_is_read_again(name: str, answer: ParsedReply) -> None:
    if name == "glm_z1":  # keeps no blanks around what is said
        answer = ParsedReply(answer.content.strip(), tool_calls=answer.tool_calls)
    calls = [_openai_call(call.name, call.arguments) for call in answer.tool_calls]
    message = {"role": "assistant", "content": answer.content or None, "tool_calls": calls}
    if not calls:
        del message["tool_calls"]
    before = write_chat(name, [USER])
    if name == "glm_z1":
        before = before[:-1]  # the opened thoughts are not part of an old answer
    segments = write_chat(name, [USER, message])[len(before) : -1]
    if name == "glm_z1":
        segments = segments[:-1]
    texts = [""]
    for segment in segments:
        if segment == SpecialToken("<|assistant|>"):
            texts.append("")
        else:
            texts[-1] += segment if isinstance(segment, str) else segment.name
    turn_starts = [len("".join(texts[:index])) for index in range(1, len(texts))]
    parser = ReplyParser(CHAT_FORMATS[name].tool_call_parser, [WEATHER])
    assert parse_reply("".join(texts), parser, turn_starts) == answer


def test_the_text_of_a_built_in_tool_is_read_again() -> None:
    call = ToolCall("python", json.dumps("print(1)\n"))
    message = {"role": "assistant", "tool_calls": [_openai_call(call.name, call.arguments)]}
    segments = write_chat("glm4_chat", [USER, message])
    assert segments[-2] == "python\nprint(1)\n"
    parser = ReplyParser("glm4", [{"type": "python"}])
    assert parse_reply(str(segments[-2]), parser) == ParsedReply(tool_calls=(call,))


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([], None, "conversation is empty"),
        ("hi", None, "Messages must be a list, got a str"),
        (["hi"], None, "Each message must be an object"),
        ([{"content": "x"}], None, 'Each message must be an object with a "role"'),
        ([{"role": "robot", "content": "x"}], None, "one of system, .*got {'role': 'robot'"),
        ([{"role": "user"}], None, "content of a message must be a text"),
        ([{"role": "user", "content": None}], None, "content of a message must be a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], None, "no pictures or files"),
        ([USER | {"tool_calls": [{}]}], None, "Each of tool_calls must be"),
        ([USER | {"tool_calls": [_openai_call("f", "{}")]}], None, "Only an assistant's message"),
        ([{"role": "assistant", "tool_calls": {}, "content": None}], None, "content of a message"),
        (
            [{"role": "assistant", "tool_calls": "f"}],
            None,
            "tool_calls of a message must be a list",
        ),
        (
            [{"role": "assistant", "tool_calls": [_openai_call("f", "{a}")]}],
            None,
            "arguments of the call of 'f' must be a JSON object",
        ),
        (
            [{"role": "assistant", "tool_calls": [_openai_call("f", "[1]")]}],
            None,
            "arguments of the call of 'f' must be a JSON object",
        ),
        (
            [{"role": "assistant", "tool_calls": [_openai_call("f\n{}", "{}")]}],
            None,
            "name of a called tool must be one word",
        ),
        ([USER | {"metadata": 5}], None, "metadata of a message must be a text"),
        ([USER | {"metadata": "x"}], None, "Only an assistant's message has metadata"),
        ([USER], {"name": "f"}, "tools must be a list"),
        ([USER], ["f"], "Each tool must be an object"),
        ([USER], [{"type": "function", "function": {}}], "with a name of one word"),
        (
            [USER],
            [{"name": "f", "x": {1, 2}}],
            "The description of tool 'f' is not a value of JSON",
        ),
        ([USER], [{"type": "python"}], "This model has no built-in tool 'python'"),
    ],
)
def test_what_cannot_be_written_is_refused(messages: Any, tools: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        write_chat("glm4_0414", messages, tools)


@pytest.mark.parametrize(
    ("name", "messages", "tools", "message"),
    [
        ("chatglm2", _TALK, None, "ChatGLM2 knows user and assistant messages in turn"),
        ("chatglm2", [USER], [WEATHER], "got user and tools"),
        ("chatglm2", [USER, _TALK[4]], None, "ending with the user's"),
        ("chatglm3", [USER], [{"type": "python"}], "ChatGLM3 has no built-in tool 'python'"),
        (
            "chatglm3",
            [{"role": "assistant", "tool_calls": [_openai_call("f", '{"a-b": 1}')]}],
            None,
            "'a-b' is no name of an argument",
        ),
        (
            "chatglm3",
            [{"role": "assistant", "tool_calls": [_openai_call("f", '"x"')]}],
            None,
            "arguments of the call of 'f' must be a JSON object",
        ),
        ("glm4_chat", [USER], [{"type": "wolfram"}], "no built-in tool 'wolfram' .it has: python"),
        ("glm_z1_rumination", [USER], [WEATHER], "calls no tools but click, finish"),
        ("glm_z1_rumination", _TALK, None, "leave out system messages"),
    ],
)
def test_what_a_model_does_not_know_is_refused(
    name: str, messages: Any, tools: Any, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        write_chat(name, messages, tools)


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="no chat format 'glm5': use one of chatglm2"):
        write_chat("glm5", [USER])
