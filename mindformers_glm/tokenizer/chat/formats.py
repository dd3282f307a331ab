"""The chat formats by name, and what a model that uses one writes back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.tokenizer.chat.chatglm import write_chatglm2, write_chatglm3
from mindformers_glm.tokenizer.chat.glm4 import (
    write_glm4_0414,
    write_glm4_chat,
    write_glm_z1,
    write_rumination,
)
from mindformers_glm.tokenizer.chat.messages import Tool, Turn, read_messages, read_tools
from mindformers_glm.tokenizer.segments import Segment


@dataclass(frozen=True)
class ChatFormat:
    """How one generation of the family writes a conversation, and how it answers.

    Attributes:
        write: turns and tools to segments, up to where the answer begins.
        tool_call_parser, reasoning_parser: what reads its answers (`replies.parsers`).
    """

    write: Callable[[Sequence[Turn], Sequence[Tool] | None], list[Segment]]
    tool_call_parser: str
    reasoning_parser: str = "none"


CHAT_FORMATS = {
    "chatglm2": ChatFormat(write_chatglm2, "chatglm2"),
    "chatglm3": ChatFormat(write_chatglm3, "chatglm3"),
    "glm4_chat": ChatFormat(write_glm4_chat, "glm4"),  # glm-4-9b-chat, -1m, -hf
    "glm4_0414": ChatFormat(write_glm4_0414, "glm4"),
    "glm_z1": ChatFormat(write_glm_z1, "glm4", "glm_z1"),
    "glm_z1_rumination": ChatFormat(write_rumination, "glm_z1_rumination", "glm_z1"),
}


def write_chat(
    format_name: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] | None = None
) -> list[Segment]:
    """Write a conversation, up to where the answer begins.

    Special tokens are segments of their own; text of the caller is text whatever it looks like.

    Args:
        format_name: one of `CHAT_FORMATS`.
        messages: see `read_messages`.
        tools: descriptions of functions the model may call, see `read_tools`.
    Raises:
        ConfigError: there is no such format.
        PromptError: the messages or tools are malformed, or the format cannot express them.
    """
    if format_name not in CHAT_FORMATS:
        raise ConfigError(
            f"There is no chat format {format_name!r}: use one of {', '.join(CHAT_FORMATS)}."
        )
    turns = read_messages(messages)
    return CHAT_FORMATS[format_name].write(turns, None if tools is None else read_tools(tools))
