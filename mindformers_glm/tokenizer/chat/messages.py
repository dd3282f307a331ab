"""Messages as callers write them (OpenAI's form or the family's own) to turns of one kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer.tool_call import ToolCall, read_json, write_json

Role = Literal["system", "user", "assistant", "observation"]
Tool = Mapping[str, Any]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "assistant": "assistant",
    "observation": "observation",
    "tool": "observation",  # OpenAI's name for a tool's result
    "function": "observation",  # OpenAI's older name
}


@dataclass(frozen=True)
class Turn:
    """What follows one role token.

    Attributes:
        metadata: what stands on the role's line: for an assistant the name of the called tool.
        call: the call this turn makes, where it came as OpenAI's `tool_calls`; each format has its
            own way to write it. `content` is empty then.
        tools: tools that the message itself brings, as glm-4-9b-chat and ChatGLM3 have them; None
            where it does not.
    """

    role: Role
    content: str = ""
    metadata: str = ""
    call: ToolCall | None = None
    tools: tuple[Tool, ...] | None = None


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Check a conversation and bring it into one form.

    An assistant's message with `tool_calls` becomes a turn for its text, if it has any, and one for
    each call.

    Args:
        messages: each with a role and content, and possibly `tool_calls` (OpenAI), or `metadata`
            and `tools` (the family). Content is a text, or a list of text parts, which are joined.
    Raises:
        PromptError: it is empty, or a message is none of these.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise PromptError(f"Messages must be a list, got a {type(messages).__name__}.")
    if not messages:
        raise PromptError("The conversation is empty: give at least one message.")
    return [turn for message in messages for turn in _read_message(message)]


def read_role(message: Mapping[str, Any]) -> Role:
    """Return whose turn a message is.

    Raises:
        PromptError: it is no object, or its role is none of those that are known. Formats write
            <|role|>: any other word could make up a special token.
    """
    role_name = message.get("role") if isinstance(message, Mapping) else None
    role = _ROLES.get(role_name) if isinstance(role_name, str) else None
    if role is None:
        raise PromptError(
            'Each message must be an object with a "role", one of '
            f"{', '.join(_ROLES)}, got {message!r:.80}."
        )
    return role


def read_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """Check descriptions of tools.

    Each is {"type": "function", "function": {"name": ...}}, or the function alone. A built-in tool
    of glm-4-9b-chat is its type alone, {"type": "python"}.

    Raises:
        PromptError: one has no name, or is nothing that JSON can express.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise PromptError(f"tools must be a list of descriptions, got a {type(tools).__name__}.")
    for tool in tools:
        name = tool_name(tool) if isinstance(tool, Mapping) else None
        if not isinstance(name, str) or not re.fullmatch(r"\S+", name):
            raise PromptError(
                'Each tool must be an object such as {"type": "function", "function": {"name": '
                f'"get_weather", ...}}}}, with a name of one word, got {tool!r:.80}.'
            )
        try:
            write_json(tool)
        except ValueError as problem:
            raise PromptError(f"The description of tool {name!r} is {problem}.") from None
    return tuple(tools)


def offered_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] | None
) -> list[Tool]:
    """Return all tools of a conversation that can be called by a name, checked or not."""
    lists = [tools, *(message.get("tools") for message in messages)]
    return [
        tool
        for tools in lists
        if isinstance(tools, Sequence)
        for tool in tools
        if isinstance(tool, Mapping) and isinstance(tool_name(tool), str)
    ]


def function_of(tool: Tool) -> Mapping[str, Any]:
    """Return the description of the function itself."""
    function = tool.get("function")
    return function if isinstance(function, Mapping) else tool


def tool_name(tool: Tool) -> Any:
    """Return the name by which a model calls the tool; a built-in tool's type is its name."""
    is_built_in = "function" not in tool and "name" not in tool
    return tool.get("type") if is_built_in else function_of(tool).get("name")


def _read_message(message: Mapping[str, Any]) -> list[Turn]:
    role = read_role(message)
    calls = [_read_call(call) for call in _read_list(message, "tool_calls")]
    if calls and role != "assistant":
        raise PromptError(f"Only an assistant's message has tool_calls, got {message!r:.80}.")
    content = _read_content(message, may_be_absent=bool(calls) or "tools" in message)
    metadata = message.get("metadata", "")
    if not isinstance(metadata, str):
        raise PromptError(f"The metadata of a message must be a text, got {metadata!r:.80}.")
    tools = message.get("tools")
    call_turns = [Turn(role, call=call) for call in calls]
    if calls and not content and not metadata:
        return call_turns
    own = Turn(role, content, metadata, tools=None if tools is None else read_tools(tools))
    return [own, *call_turns]


def _read_list(message: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = message.get(key) or ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise PromptError(f"{key} of a message must be a list, got {value!r:.80}.")
    return value


def _read_content(message: Mapping[str, Any], *, may_be_absent: bool) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and may_be_absent:
        return ""
    if isinstance(content, list | tuple):
        return "".join(map(_read_part, content))
    raise PromptError(
        f"The content of a message must be a text or a list of text parts, got {message!r:.80}."
    )


def _read_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str) or part.get("type", "text") != "text":
        raise PromptError(
            'Content can only have parts {"type": "text", "text": ...}: these models read no '
            f"pictures or files, got {part!r:.80}."
        )
    return text


def _read_call(call: Any) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise PromptError(
            'Each of tool_calls must be {"type": "function", "function": {"name": ..., '
            f'"arguments": ...}}}}, got {call!r:.80}.'
        )
    if not re.fullmatch(r"\S+", name):
        raise PromptError(f"The name of a called tool must be one word, got {name!r:.80}.")
    arguments = function.get("arguments", "{}")
    try:
        text = arguments if isinstance(arguments, str) else write_json(arguments)
        is_known = isinstance(read_json(text), dict | str)
    except ValueError:
        is_known = False
    if not is_known:
        raise PromptError(
            f"The arguments of the call of {name!r} must be a JSON object, got {arguments!r:.80}."
        )
    return ToolCall(name, text)
