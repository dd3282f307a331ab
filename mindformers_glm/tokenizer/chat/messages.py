"""Messages as callers write them (OpenAI's form or the family's own), brought into one form."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
# What an assistant thought; templates leave the thoughts of earlier answers out.
_REASONING_KEYS = frozenset(("reasoning_content", "reasoning", "thinking"))
# What a prompt may leave out: those, and what says nothing to a model (who stored it when).
_OPTIONAL = _REASONING_KEYS.union(
    ("id", "index", "object", "type", "status", "created", "created_at", "timestamp", "model"),
    ("finish_reason", "stop_reason", "usage"),
)
# Which call it answers; the results stand in the order of the calls.
_OPTIONAL_OF_RESULTS = frozenset(("tool_call_id", "name"))
_KNOWN = frozenset(("role", "content", "tool_calls", "function_call", "metadata", "tools"))


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


@dataclass(frozen=True)
class Message:
    """One message of a conversation, checked.

    Attributes:
        given_role: as it was written; `role` is what it means.
        parts: the texts of its content; None where a call or a tool stands in place of a content.
        calls: the tools an assistant calls.
        has_argument_texts: the arguments of a call came as a text and not as an object.
        metadata, tools: see `Turn`.
        extras: other keys that are not null or empty, such as name and tool_call_id.
    """

    role: Role
    given_role: str
    parts: tuple[str, ...] | None = None
    calls: tuple[ToolCall, ...] = ()
    has_argument_texts: bool = False
    metadata: str = ""
    tools: tuple[Tool, ...] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> str:
        """The text of all parts."""
        return "".join(self.parts or ())

    @property
    def family_call(self) -> ToolCall | None:
        """The call that an assistant's `metadata` and content are in the family's own form."""
        if self.role != "assistant" or not self.metadata:
            return None
        try:
            is_object = isinstance(read_json(self.content), dict)
        except ValueError:
            is_object = False
        # Anything else is the plain text that a built-in tool takes.
        return ToolCall(self.metadata, self.content if is_object else json.dumps(self.content))

    @property
    def meaningful_extras(self) -> dict[str, Any]:
        """Those of the extras that must not be lost."""
        optional = _OPTIONAL | _OPTIONAL_OF_RESULTS if self.role == "observation" else _OPTIONAL
        return {key: value for key, value in self.extras.items() if key not in optional}

    @property
    def turns(self) -> list[Turn]:
        """A turn for its text, if it has any, and one for each call."""
        calls = [Turn(self.role, call=call) for call in self.calls]
        if calls and not self.content and not self.metadata:
            return calls
        return [Turn(self.role, self.content, self.metadata, tools=self.tools), *calls]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Check a conversation and bring it into one form.

    A key that is null counts as one that is absent. `function_call`, OpenAI's older form, is a call
    like one of `tool_calls`; arguments that are null or an empty text are {}.

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
    return list(map(_read_message, messages))


def _read_role(message: Mapping[str, Any]) -> Role:
    """Formats write <|role|>: a word that is not known could make up a special token."""
    role_name = message.get("role") if isinstance(message, Mapping) else None
    role = _ROLES.get(role_name) if isinstance(role_name, str) else None
    if role is None:
        raise PromptError(
            'Each message must be an object with a "role", one of '
            f"{', '.join(_ROLES)}, got {message!r:.80}."
        )
    return role


def read_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """Check descriptions of tools and bring them into one form.

    Each is {"type": "function", "function": {"name": ...}}, or the function alone, which becomes
    that. A built-in tool of glm-4-9b-chat is its type alone, {"type": "python"}.

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
    return tuple(map(_wrap, tools))


def offered_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] | None
) -> list[Tool]:
    """Return all tools of a conversation that can be called by a name, checked or not."""
    lists = [tools, *(m.get("tools") for m in messages if isinstance(m, Mapping))]
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


def _wrap(tool: Tool) -> Tool:
    if "function" in tool:
        return tool if "type" in tool else {"type": "function", **tool}
    if "name" not in tool:
        return tool
    is_typed = tool.get("type") == "function"  # as in OpenAI's Responses API
    function = {key: value for key, value in tool.items() if not (is_typed and key == "type")}
    return {"type": "function", "function": function}


def _read_message(message: Mapping[str, Any]) -> Message:
    role = _read_role(message)
    raw_calls = list(_read_list(message, "tool_calls"))
    if message.get("function_call") is not None:
        raw_calls.append({"function": message["function_call"]})
    calls = tuple(map(_read_call, raw_calls))
    if calls and role != "assistant":
        raise PromptError(f"Only an assistant's message has tool_calls, got {message!r:.80}.")
    metadata = message.get("metadata")
    if metadata is not None and not isinstance(metadata, str):
        raise PromptError(f"The metadata of a message must be a text, got {metadata!r:.80}.")
    tools = message.get("tools")
    extras = {
        key: value
        for key, value in message.items()
        if key not in _KNOWN and value is not None and value not in ("", [], {})
    }
    may_be_absent = bool(calls) or tools is not None or not _REASONING_KEYS.isdisjoint(extras)
    return Message(
        role,
        message["role"],
        _read_content(message, may_be_absent=may_be_absent),
        calls,
        any(isinstance(call["function"].get("arguments"), str) for call in raw_calls),
        metadata or "",
        None if tools is None else read_tools(tools),
        extras,
    )


def _read_list(message: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = message.get(key) or ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise PromptError(f"{key} of a message must be a list, got {value!r:.80}.")
    return value


def _read_content(message: Mapping[str, Any], *, may_be_absent: bool) -> tuple[str, ...] | None:
    content = message.get("content")
    if isinstance(content, str):
        return (content,)
    if content is None and may_be_absent:
        return None
    if isinstance(content, list | tuple):
        return tuple(map(_read_part, content))
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
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = "{}"
    try:
        text = arguments if isinstance(arguments, str) else write_json(arguments)
        is_known = isinstance(read_json(text), dict | str)
    except ValueError:
        is_known = False
    if not is_known:
        raise PromptError(
            f"The arguments of the call of {name!r} must be a JSON object, got {arguments!r:.80}."
        )
    call_id = call.get("id")
    return ToolCall(name, text, call_id if isinstance(call_id, str) else "")
