"""The formats of GLM-4: glm-4-9b-chat, GLM-4-0414, GLM-Z1-0414 and GLM-Z1-Rumination-0414.

All write a role token, the rest of the role's line (for an assistant the name of the tool it
calls), a newline and the content. The text is that of the checkpoints' own templates as Hugging
Face renders them, to the newline; role line and content are one piece for the tokenizer, as there.
"""

import json
from collections.abc import Sequence

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer.chat.messages import Tool, Turn, function_of, tool_name
from mindformers_glm.tokenizer.chat.official_prompts import (
    BUILT_IN_TOOLS,
    CALL_IN_JSON,
    GLM4_IDENTITY,
    GLM_Z1_IDENTITY,
    RUMINATION_SYSTEM,
    RUMINATION_TOOLS,
    TOOLS_TITLE,
)
from mindformers_glm.tokenizer.segments import Segment, SpecialToken
from mindformers_glm.tokenizer.tool_call import ToolCall, read_json

_PREFIX: tuple[Segment, ...] = (SpecialToken("[gMASK]"), SpecialToken("<sop>"))
# What stands before the tools. Those of 0414 have no identity line, but one newline more.
_GLM4_HEADING = f"{GLM4_IDENTITY}\n\n{TOOLS_TITLE}"
_GLM4_0414_HEADING = f"{TOOLS_TITLE}\n"
_GLM_Z1_HEADING = f"{GLM_Z1_IDENTITY}\n\n{TOOLS_TITLE}"


def write_glm4_chat(turns: Sequence[Turn], tools: Sequence[Tool] | None) -> list[Segment]:
    """Write for glm-4-9b-chat, as the chat_template of its tokenizer_config.json does.

    Tools are a system turn of their own before the text of the message that brings them; an empty
    message is left out.
    """
    segments = list(_PREFIX)
    if tools:
        segments += _write("system", "", _describe(tools, _GLM4_HEADING, BUILT_IN_TOOLS))
    for turn in turns:
        if turn.tools is not None:
            segments += _write("system", "", _describe(turn.tools, _GLM4_HEADING, BUILT_IN_TOOLS))
        metadata, content = _line_and_content(turn)
        if content or turn.call is not None:
            segments += _write(turn.role, metadata, content)
    return segments


def write_glm4_0414(turns: Sequence[Turn], tools: Sequence[Tool] | None) -> list[Segment]:
    """Write for GLM-4-9B-0414 and GLM-4-32B-0414, as their chat_template.jinja does.

    Tools come first, without an identity line, then all system messages, then the others. The
    name of a called tool is followed by a blank, as it is there.
    """
    _check_metadata(turns)
    segments = [*_PREFIX, *_write_system(turns, tools, _GLM4_0414_HEADING)]
    for turn in turns:
        if turn.role != "system":
            metadata, content = _line_and_content(turn)
            segments += _write(turn.role, f"{metadata} " if metadata else "", content)
    return segments


def write_glm_z1(turns: Sequence[Turn], tools: Sequence[Tool] | None) -> list[Segment]:
    """Write for GLM-Z1-9B-0414 and GLM-Z1-32B-0414; the answer begins inside <think>.

    After a copy of their template in a public repository: the original was not at hand.

    Of earlier answers only what follows </think> stays, without blanks around it.
    """
    _check_metadata(turns)
    segments = [*_PREFIX, *_write_system(turns, tools, _GLM_Z1_HEADING)]
    for turn in turns:
        if turn.role != "system":
            metadata, content = _line_and_content(turn)
            segments += _write(turn.role, metadata, _after_thinking(turn, content))
    return segments


def write_rumination(turns: Sequence[Turn], tools: Sequence[Tool] | None) -> list[Segment]:
    """Write for GLM-Z1-Rumination-32B-0414, whose system text and tools are fixed.

    Raises:
        PromptError: the conversation has other tools, or a system message.
    """
    _check_metadata(turns)
    known = {tool["name"] for tool in RUMINATION_TOOLS}
    offered = {tool_name(tool) for tool in _all_tools(turns, tools)}
    if any(turn.role == "system" for turn in turns) or not offered <= known:
        raise PromptError(
            "GLM-Z1-Rumination was trained with one system text, and calls no tools but "
            f"{', '.join(sorted(known))}: leave out system messages and other tools."
        )
    segments = [*_PREFIX, *_write("system", "", RUMINATION_SYSTEM)]
    for turn in turns:
        if turn.call is not None:  # not on the role's line: an object with name and arguments
            segments += _write("assistant", "", _call_as_object(turn.call))
        else:
            metadata = f"{turn.metadata} " if turn.metadata else ""
            segments += _write(turn.role, metadata, _after_thinking(turn, turn.content))
    return segments


def begin_glm4_answer(content: str) -> list[Segment]:
    """Write the beginning of an answer that is to be continued."""
    return _write("assistant", "", content)


def _write(role: str, metadata: str, content: str) -> list[Segment]:
    return [SpecialToken(f"<|{role}|>"), f"{metadata}\n{content}"]


def _write_system(
    turns: Sequence[Turn], tools: Sequence[Tool] | None, heading: str
) -> list[Segment]:
    segments: list[Segment] = []
    offered = _all_tools(turns, tools)
    if offered:
        segments += _write("system", "", _describe(offered, heading, built_in={}))
    for turn in turns:
        if turn.role == "system" and not (turn.tools and not turn.content):
            segments += _write("system", "", turn.content)
    return segments


def _check_metadata(turns: Sequence[Turn]) -> None:
    """The 0414 templates would leave it out without a word."""
    for turn in turns:
        if turn.metadata and turn.role != "assistant":
            raise PromptError(
                "Only an assistant's message has metadata with this model (the name of the tool "
                f"it calls), got {turn.metadata!r:.80} with role {turn.role!r}."
            )


def _all_tools(turns: Sequence[Turn], tools: Sequence[Tool] | None) -> list[Tool]:
    return [*(tools or ()), *(tool for turn in turns for tool in turn.tools or ())]


def _describe(tools: Sequence[Tool], heading: str, built_in: dict[str, str]) -> str:
    text = heading
    for tool in tools:
        function = function_of(tool)
        if "name" in function:
            description = json.dumps(function, ensure_ascii=False, indent=4)
            text += f"\n## {function['name']}\n\n{description}\n{CALL_IN_JSON}"
        elif tool["type"] in built_in:
            text += f"\n## {tool['type']}\n\n{built_in[tool['type']]}"
        else:
            raise PromptError(
                f"This model has no built-in tool {tool['type']!r} "
                f"(it has: {', '.join(built_in) or 'none'}): describe it as a function."
            )
    return text


def _line_and_content(turn: Turn) -> tuple[str, str]:
    """Return the rest of the role's line, and what stands below it."""
    if turn.call is None:
        return turn.metadata, turn.content
    return turn.call.name, turn.call.text


def _call_as_object(call: ToolCall) -> str:
    call_object = {"name": call.name, "arguments": read_json(call.arguments)}
    return json.dumps(call_object, ensure_ascii=False)


def _after_thinking(turn: Turn, content: str) -> str:
    """Only answers hold thoughts: the templates cut every text, and a user's would be lost."""
    is_answer = turn.role == "assistant" and turn.call is None and not turn.metadata
    return (content.split("</think>")[-1] if is_answer else content).strip()
