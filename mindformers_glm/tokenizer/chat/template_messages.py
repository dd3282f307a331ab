"""Conversations in OpenAI's form for templates that only know the family's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer.chat.messages import Turn, read_messages, read_tools

Message = Mapping[str, Any]
_OPENAI_ROLES = {"tool", "function", "developer"}


class TemplateDialect:
    """What a chat template reads of messages, told by its source.

    A template of the family knows a call as an assistant's message with `metadata` (the tool's
    name) and the arguments as content, and its result as an `observation`; that of glm-4-9b-chat
    takes the tools from a message, not apart. Messages in OpenAI's form would lose their calls
    there, and tools given apart would be left out, both without a word.
    """

    def __init__(self, template: str) -> None:
        self._knows_openai = "tool_calls" in template
        self._knows_metadata = "metadata" in template
        self._takes_tools = "tools" in _free_names(template)
        self._takes_tools_of_messages = "['tools']" in template or ".tools" in template

    def fit(
        self, messages: Sequence[Message], tools: Sequence[Message] | None
    ) -> tuple[Sequence[Message], Sequence[Message] | None]:
        """Return messages and tools as the template reads them; others stay as they are.

        Raises:
            PromptError: it has no place for calls or tools, or messages in OpenAI's form are
                malformed.
        """
        if not self._knows_openai and any(map(_is_openai, messages)):
            messages = [self._write(turn) for turn in read_messages(messages)]
        if not tools or self._takes_tools:
            return messages, tools
        if not self._takes_tools_of_messages:
            raise PromptError("This model's chat template has no place for tools: leave them out.")
        return [{"role": "system", "content": "", "tools": read_tools(tools)}, *messages], None

    def _write(self, turn: Turn) -> Message:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.call is not None and not self._knows_metadata:
            raise PromptError(
                "This model's chat template has no place for tool calls: leave them out."
            )
        if turn.call is not None:
            message |= {"metadata": turn.call.name, "content": turn.call.text}
        elif turn.metadata:
            message["metadata"] = turn.metadata
        return message if turn.tools is None else message | {"tools": turn.tools}


def _is_openai(message: Message) -> bool:
    return (
        bool(message.get("tool_calls"))
        or message.get("role") in _OPENAI_ROLES
        or not isinstance(message.get("content", ""), str)
    )


def _free_names(template: str) -> set[str]:
    """The names that a template takes from outside."""
    from jinja2 import TemplateSyntaxError

    from mindformers_glm.tokenizer.template_sandbox import find_free_names

    try:
        return find_free_names(template)
    except TemplateSyntaxError:
        return {"tools"}  # broken: rendering will tell
