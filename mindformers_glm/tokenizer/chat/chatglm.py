"""The formats of ChatGLM2 and ChatGLM3, whose tokenizers are sentencepiece models."""

import json
from collections.abc import Sequence
from keyword import iskeyword
from typing import Any

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer.chat.messages import Tool, Turn, function_of, tool_name
from mindformers_glm.tokenizer.chat.official_prompts import CHATGLM3_TOOLS
from mindformers_glm.tokenizer.segments import Segment, SpecialToken
from mindformers_glm.tokenizer.tool_call import ToolCall, read_json

_PREFIX: tuple[Segment, ...] = (SpecialToken("[gMASK]"), SpecialToken("sop"))


def write_chatglm2(turns: Sequence[Turn], tools: Sequence[Tool] | None) -> list[Segment]:
    """Write for ChatGLM2-6B: rounds of question and answer, all in one text.

    Source: `build_prompt` of its tokenization_chatglm.py.

    Raises:
        PromptError: the conversation is anything but questions and answers in turn, ending with a
            question.
    """
    roles = ["user", "assistant"] * len(turns)
    is_plain = all(
        turn.role == role and turn.call is None and not turn.metadata and turn.tools is None
        for turn, role in zip(turns, roles, strict=False)
    )
    if tools or not is_plain or not turns or turns[-1].role != "user":
        raise PromptError(
            "ChatGLM2 knows user and assistant messages in turn, ending with the user's, and "
            f"nothing else (no system text, no tools), got {', '.join(t.role for t in turns)}"
            f"{' and tools' if tools else ''}."
        )
    text = ""
    for index, turn in enumerate(turns):
        if turn.role == "user":
            text += f"[Round {index // 2 + 1}]\n\n问：{turn.content}\n\n"
        else:
            text += f"答：{turn.content}\n\n"
    return [*_PREFIX, text]


def write_chatglm3(turns: Sequence[Turn], tools: Sequence[Tool] | None) -> list[Segment]:
    """Write for ChatGLM3-6B: the role's token, the rest of its line, and the content.

    The line and the content are tokenized apart. Source: `build_single_message` and
    `build_chat_input` of its tokenization_chatglm.py; PROMPT.md of its repository for calls.

    Raises:
        PromptError: an argument of a call has a name that Python cannot express.
    """
    segments = list(_PREFIX)
    if tools:
        segments += _write("system", "", f"{CHATGLM3_TOOLS}\n{_describe(tools)}")
    for turn in turns:
        content = turn.content
        if turn.tools is not None:
            # Its prompts carry the sentence in the message itself; the tools follow on a new line.
            content = f"{content or CHATGLM3_TOOLS}\n{_describe(turn.tools)}"
        if turn.call is not None:
            segments += _write("assistant", turn.call.name, _call_as_python(turn.call))
        else:
            segments += _write(turn.role, turn.metadata, content)
    return segments


def begin_chatglm2_answer(content: str) -> list[Segment]:
    """Write the beginning of an answer that is to be continued."""
    return [f"答：{content}"]


def begin_chatglm3_answer(content: str) -> list[Segment]:
    """Write the beginning of an answer that is to be continued."""
    return _write("assistant", "", content)


def _write(role: str, metadata: str, content: str) -> list[Segment]:
    return [SpecialToken(f"<|{role}|>"), f"{metadata}\n", content]


def _describe(tools: Sequence[Tool]) -> str:
    functions = [dict(function_of(tool)) for tool in tools]
    for function, tool in zip(functions, tools, strict=True):
        if "name" not in function:
            raise PromptError(
                f"ChatGLM3 has no built-in tool {tool_name(tool)!r}: describe it as a function."
            )
    return json.dumps(functions, ensure_ascii=False, indent=4)


def _call_as_python(call: ToolCall) -> str:
    arguments = read_json(call.arguments)
    if not isinstance(arguments, dict):
        raise PromptError(f"The arguments of the call of {call.name!r} must be a JSON object.")
    for name in arguments:
        if not name.isidentifier() or iskeyword(name):
            raise PromptError(
                f"ChatGLM3 calls tools in Python, where {name!r} is no name of an argument "
                f"(call of {call.name!r})."
            )
    text = ", ".join(f"{name}={_literal(value)}" for name, value in arguments.items())
    return f"```python\ntool_call({text})\n```"


def _literal(value: Any) -> str:
    """Write a value in Python, with double quotes as the model was trained to."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # JSON's escapes are Python's, too
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    return repr(value)
