"""The chat formats by name, and what a model that uses one writes back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.tokenizer.chat.chatglm import (
    begin_chatglm2_answer,
    begin_chatglm3_answer,
    write_chatglm2,
    write_chatglm3,
)
from mindformers_glm.tokenizer.chat.glm4 import (
    begin_glm4_answer,
    write_glm4_0414,
    write_glm4_chat,
    write_glm_z1,
    write_rumination,
)
from mindformers_glm.tokenizer.chat.messages import Tool, Turn, read_messages, read_tools
from mindformers_glm.tokenizer.chat.options import NO_OPTIONS, NOTHING_TO_CONTINUE, ChatOptions
from mindformers_glm.tokenizer.segments import Segment, SpecialToken


@dataclass(frozen=True)
class ChatFormat:
    """How one generation of the family writes a conversation, and how it answers.

    Attributes:
        write: turns and tools to segments.
        opening: what stands behind them, where the answer begins.
        begin_answer: an answer's first text to segments, where it is to be continued.
        tool_call_parser, reasoning_parser: what reads its answers (`replies.parsers`).
    """

    write: Callable[[Sequence[Turn], Sequence[Tool] | None], list[Segment]]
    opening: Sequence[Segment]
    begin_answer: Callable[[str], list[Segment]]
    tool_call_parser: str
    reasoning_parser: str = "none"


_ANSWER = (SpecialToken("<|assistant|>"),)
_GLM4 = (_ANSWER, begin_glm4_answer, "glm4")
CHAT_FORMATS = {
    "chatglm2": ChatFormat(write_chatglm2, ("答：",), begin_chatglm2_answer, "chatglm2"),
    "chatglm3": ChatFormat(write_chatglm3, _ANSWER, begin_chatglm3_answer, "chatglm3"),
    "glm4_chat": ChatFormat(write_glm4_chat, *_GLM4),  # glm-4-9b-chat, -1m, -hf
    "glm4_0414": ChatFormat(write_glm4_0414, *_GLM4),
    "glm_z1": ChatFormat(
        write_glm_z1, (*_ANSWER, "\n<think>"), begin_glm4_answer, "glm4", "glm_z1"
    ),
    "glm_z1_rumination": ChatFormat(
        write_rumination, _ANSWER, begin_glm4_answer, "glm_z1_rumination", "glm_z1"
    ),
}


def write_chat(
    format_name: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool] | None = None,
    options: ChatOptions = NO_OPTIONS,
) -> list[Segment]:
    """Write a conversation, up to where the answer begins.

    Special tokens are segments of their own; text of the caller is text whatever it looks like.

    Args:
        format_name: one of `CHAT_FORMATS`.
        messages: see `read_messages`.
        tools: descriptions of functions the model may call, see `read_tools`.
    Raises:
        ConfigError: there is no such format, or it has none of these options.
        PromptError: the messages or tools are malformed, or the format cannot express them.
    """
    if format_name not in CHAT_FORMATS:
        raise ConfigError(
            f"There is no chat format {format_name!r}: use one of {', '.join(CHAT_FORMATS)}."
        )
    if options.chat_template_kwargs:
        raise ConfigError(
            f"chat_template_kwargs are read by a chat template, and {format_name} is a built-in "
            "format: leave them out, or give chat_template."
        )
    chat_format = CHAT_FORMATS[format_name]
    conversation = read_messages(messages)
    turns = [turn for message in conversation for turn in message.turns]
    for message in conversation:
        for key in message.meaningful_extras:
            raise PromptError(
                f"The chat format {format_name} has no place for {key!r} of a message (role "
                f"{message.given_role}): leave it out."
            )
    behind: Sequence[Segment] = chat_format.opening if options.begins_answer else ()
    if options.continue_final_message:
        last = turns.pop()
        if last.role != "assistant" or last.call is not None or last.metadata:
            raise PromptError(NOTHING_TO_CONTINUE)
        behind = chat_format.begin_answer(last.content)
    segments = chat_format.write(turns, None if tools is None else read_tools(tools))
    if behind and isinstance(behind[0], str) and isinstance(segments[-1], str):
        return [*segments[:-1], segments[-1] + behind[0]]  # one text, as ChatGLM2 has it
    return [*segments, *behind]
