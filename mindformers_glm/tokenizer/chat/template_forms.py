"""The forms in which chat templates read messages, calls and tools."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from mindformers_glm.tokenizer.chat.messages import Message, Tool, function_of
from mindformers_glm.tokenizer.tool_call import ToolCall, read_json

# {"role": ..., "content": ..., ...} as a template gets it.
Written = dict[str, Any]


@dataclass(frozen=True)
class TemplateForm:
    """One way to hand a conversation to a template.

    Attributes:
        content: as one text, or as a list of text parts.
        absent: what stands where a message has no content: no key, or an empty text.
        calls: `tool_calls` whose arguments are an object or a text, or the family's own form: a
            message for each call, with the name in `metadata` and the arguments as content.
        result_role: the role of a tool's result.
        tools: given beside the messages, in `tools` of a system message, or not at all: the
            template brings its own.
        has_bare_tools: each tool is the function alone.
    """

    content: Literal["text", "parts"] = "text"
    absent: Literal["", None] = None
    calls: Literal["object", "text", "metadata"] = "object"
    result_role: str = "tool"
    tools: Literal["beside", "message", "own"] = "beside"
    has_bare_tools: bool = False

    def write(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Written], list[Tool] | None]:
        """Return messages and tools as the template is to get them."""
        beside = list(tools)
        written: list[Written] = []
        for message in messages:
            own = message.tools
            if own and self.tools != "message":
                beside += [tool for tool in own if tool not in beside]
                own = None
                if not (message.content or message.calls) and len(messages) > 1:
                    continue  # it had nothing but the tools
            written += self._write(message, own)
        if self.tools == "message":
            beside = [t for t in beside if not any(t in (m.tools or ()) for m in messages)]
        shaped = [function_of(tool) if self.has_bare_tools else tool for tool in beside]
        if self.tools == "message" and shaped:
            written.insert(0, {"role": "system", "content": "", "tools": shaped})
        return written, shaped if self.tools == "beside" and shaped else None

    def _write(self, message: Message, tools: Sequence[Tool] | None) -> Iterator[Written]:
        role = self.result_role if message.role == "observation" else message.role
        first: Written = {"role": role, **self._write_content(message.parts), **message.extras}
        if tools is not None:
            first["tools"] = [function_of(tool) if self.has_bare_tools else tool for tool in tools]
        if self.calls == "metadata":
            if message.metadata:
                first["metadata"] = message.metadata
            if message.content or not message.calls:
                yield first
            for call in message.calls:
                yield {"role": role, **self._write_content([call.text]), "metadata": call.name}
            return
        calls = message.calls
        if message.family_call is not None:
            first = {"role": role, **self._write_content(None), **message.extras}
            calls = (message.family_call, *calls)
        elif message.metadata:
            first["metadata"] = message.metadata
        if calls:
            first["tool_calls"] = [self._write_call(call) for call in calls]
        yield first

    def _write_content(self, parts: Sequence[str] | None) -> Written:
        if parts is None:
            return {} if self.absent is None else {"content": self.absent}
        if self.content == "parts":
            return {"content": [{"type": "text", "text": part} for part in parts]}
        return {"content": "".join(parts)}

    def _write_call(self, call: ToolCall) -> Written:
        arguments = read_json(call.arguments)
        if self.calls == "text" and not isinstance(arguments, str):
            arguments = call.arguments
        function = {"name": call.name, "arguments": arguments}
        return {**({"id": call.id} if call.id else {}), "type": "function", "function": function}


def list_forms(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[TemplateForm]:
    """Yield the forms worth trying for a conversation, the nearest to how it is written first."""
    has_own_tools = any(message.tools for message in messages)
    calls: list[Any] = ["object"]
    if any(message.calls or message.metadata for message in messages):
        calls = ["object", "text", "metadata"]
        if any(message.has_argument_texts for message in messages):
            calls = ["text", "object", "metadata"]
        if any(message.metadata for message in messages):
            calls = ["metadata", *calls[:2]]
    given = [message.given_role for message in messages if message.role == "observation"]
    roles = list(dict.fromkeys([*given, "tool", "observation", "function"])) if given else ["tool"]
    places: list[tuple[Any, bool]] = [("beside", False)]
    if tools or has_own_tools:
        places = [("beside", False), ("message", False), ("beside", True), ("message", True)]
        if has_own_tools:
            places = [places[i] for i in (1, 0, 3, 2)]
        places.append(("own", False))
    absent: list[Any] = [None, ""] if any(message.parts is None for message in messages) else [None]
    contents: list[Any] = ["text", "parts"]
    for content, empty, call in product(contents, absent, calls):
        # The family's form of a call goes with its name of a result.
        own_roles = sorted(roles, key=lambda role: role != "observation")
        for role, (place, is_bare) in product(own_roles if call == "metadata" else roles, places):
            yield TemplateForm(content, empty, call, role, place, is_bare)
