"""A conversation with marks in its texts, by which one sees what a template writes of it."""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mindformers_glm.tokenizer.chat.messages import Message, Tool, function_of, tool_name
from mindformers_glm.tokenizer.tool_call import ToolCall, read_json

# Before a key of arguments: as Python writes it, and JSON inside of JSON.
_MISQUOTED = ("'", '\\"')
# A list of text parts that is written as it is.
_AS_PART = re.compile(r"""['"]text['"]: ?['"]\Z""")


class MarkedConversation:
    """A copy of a conversation whose texts stand between marks, whose names are marks.

    A template that is given the copy shows what it would leave out of the conversation itself,
    without a look at how it is written: a mark that is not in its text stands for something lost.
    Text before </think> in what an assistant wrote may be lost: templates leave out the thoughts
    of earlier answers.

    Args:
        is_continued: the last message is to be continued, and so must be whole.
    """

    def __init__(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, is_continued: bool = False
    ) -> None:
        self._nonce = f"q{secrets.token_hex(8)}n"
        self._mark = re.compile(f"{self._nonce}(\\d+)z")
        self._meanings: list[str] = []
        self._wanted: set[int] = set()
        self._tool_names: dict[int, str] = {}
        self._keys: set[int] = set()
        last = len(messages) - 1
        self.messages = [
            self._mark_message(message, index + 1, is_whole=is_continued and index == last)
            for index, message in enumerate(messages)
        ]
        self.tools = [self._mark_tool(tool) for tool in tools]

    def find_lost(self, written: str, own_text: str = "") -> list[str]:
        """Return what is missing in what a template has written of the copy, for people.

        Args:
            own_text: what the template writes of itself, where it may bring the tools.
        """
        found = {n for n, name in self._tool_names.items() if f'"{name}"' in own_text}
        misquoted: set[int] = set()
        for match in self._mark.finditer(written):
            number, before = int(match[1]), written[max(match.start() - 12, 0) : match.start()]
            is_bad_key = number in self._keys and before.endswith(_MISQUOTED)
            (misquoted if is_bad_key or _AS_PART.search(before) else found).add(number)
        found -= misquoted
        return list(dict.fromkeys(self._meanings[n] for n in sorted(self._wanted - found)))

    def change_silent(self) -> Iterator[tuple[str, list[Message], list[Tool]]]:
        """Yield what has no text to be marked, and the copy in which it is another.

        A template that uses it writes something else then.
        """
        keys = {key: role for m in self.messages for key, role in self._silent_keys(m)}
        for key, role in keys.items():
            messages = [
                replace(m, extras={k: v for k, v in m.extras.items() if k != key})
                for m in self.messages
            ]
            yield f"{key!r} of a message (role {role})", messages, self.tools
        listed = [self.tools, *(message.tools or () for message in self.messages)]
        for name in {tool_name(t): None for tools in listed for t in tools if "function" not in t}:
            messages = [
                m if m.tools is None else replace(m, tools=self._change(m.tools, name))
                for m in self.messages
            ]
            yield f"tool {name!r}", messages, list(self._change(self.tools, name))

    def _change(self, tools: Sequence[Tool], name: str) -> tuple[Tool, ...]:
        return tuple({"type": self._nonce} if tool_name(t) == name else t for t in tools)

    @staticmethod
    def _silent_keys(message: Message) -> list[tuple[str, str]]:
        return [
            (key, message.given_role)
            for key, value in message.meaningful_extras.items()
            if not isinstance(value, str)
        ]

    def _new_mark(self, meaning: str, *, is_wanted: bool = True) -> str:
        """Its number is that of the marks before it."""
        number = len(self._meanings)
        self._meanings.append(meaning)
        if is_wanted:
            self._wanted.add(number)
        return f"{self._nonce}{number}z"

    def _mark_message(self, message: Message, number: int, *, is_whole: bool) -> Message:
        place = f"message {number} (role {message.given_role})"
        extras = dict(message.extras)
        for key, value in message.meaningful_extras.items():
            if isinstance(value, str):
                extras[key] = self._new_mark(f"{key!r} of {place}")
        marked = replace(
            message,
            calls=tuple(self._mark_call(call, place) for call in message.calls),
            tools=None if message.tools is None else tuple(map(self._mark_tool, message.tools)),
            extras=extras,
        )
        family_call = message.family_call
        if family_call is not None and isinstance(read_json(family_call.arguments), dict):
            call = self._mark_call(family_call, place)
            return replace(marked, metadata=call.name, parts=(call.text,))
        may_think = message.role == "assistant" and not is_whole
        return replace(
            marked,
            metadata=message.metadata and self._new_mark(f"the metadata of {place}"),
            parts=message.parts
            and tuple(
                self._mark_text(part, f"the text of {place}", may_think=may_think)
                for part in message.parts
            ),
        )

    def _mark_text(self, text: str, meaning: str, *, may_think: bool) -> str:
        if not text:
            return text
        begin = self._new_mark(meaning, is_wanted=not (may_think and "</think>" in text))
        # What looks like a role's token is not to be taken for one of the template.
        return begin + _shorten(text).replace("<|", "<") + self._new_mark(meaning)

    def _mark_call(self, call: ToolCall, place: str) -> ToolCall:
        meaning = f"the call of {call.name!r} in {place}"
        arguments = read_json(call.arguments)
        if isinstance(arguments, str):
            marked: Any = self._mark_values(arguments, meaning)
        else:  # with one more, so that there is one
            marked = {self._mark_key(meaning): self._new_mark(meaning)}
            marked |= self._mark_values(arguments, meaning)
        return ToolCall(self._new_mark(meaning), json.dumps(marked), call.id)

    def _mark_values(self, value: Any, meaning: str) -> Any:
        if isinstance(value, dict):
            return {
                self._mark_key(meaning) + key: self._mark_values(item, meaning)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._mark_values(item, meaning) for item in value]
        if isinstance(value, str):
            return self._new_mark(meaning) + value + self._new_mark(meaning)
        return value

    def _mark_key(self, meaning: str) -> str:
        self._keys.add(len(self._meanings))
        return self._new_mark(meaning)

    def _mark_tool(self, tool: Tool) -> Tool:
        if "function" not in tool:
            return tool
        name = tool_name(tool)
        self._tool_names[len(self._meanings)] = name
        mark = self._new_mark(f"tool {name!r}")
        return {**tool, "function": {**function_of(tool), "name": mark}}


def _shorten(text: str) -> str:
    """Keep what templates look at: the ends of a text, and where thoughts end."""
    if len(text) <= 400:
        return text
    middle = text[200:-200]
    return text[:200] + "".join(t for t in ("<think>", "</think>") if t in middle) + text[-200:]
