"""/v1/messages, in Anthropic's form."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mindformers_glm.serving.server.answer_parts import Part, Usage
from mindformers_glm.serving.server.asked import Asked
from mindformers_glm.serving.server.blocks import Block, Blocks
from mindformers_glm.serving.server.chat_fields import read_options, read_tools
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import ErrorEvent, SseEvent
from mindformers_glm.serving.server.fields import Fields
from mindformers_glm.serving.server.sampling_fields import read_sampling
from mindformers_glm.serving.server.service import Service

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "container": ((), "leave it out"),
    "mcp_servers": (([],), "offer tools"),
    "context_management": ((), "shorten the messages"),
    "output_format": ((), "describe the form in a message"),
    "output_config": ((), "describe the form in a message"),
    "n": ((1,), "send several requests"),
}
_CHOICES = {"auto": "auto", "none": "none", "any": "required"}
_THINKING = ("enabled", "disabled", "adaptive")  # adaptive: as the model does by itself
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def read_message(fields: Fields, service: Service) -> Asked:
    """Understand a request.

    Raises:
        RequestError: it is wrong.
    """
    chat, messages = read_conversation(fields)
    tools, tool_choice, one_call = read_tools(chat)
    if fields.raw("max_tokens") is None:
        raise RequestError(400, "max_tokens must be given.", param="max_tokens")
    extra = {"stop": stops} if (stops := fields.take("stop_sequences", list)) else {}
    form = MessageForm(service.read_model(chat))
    is_stream = chat.take("stream", bool, False)
    chat.raw("metadata")
    params = read_sampling(
        chat, service.settings.sampling, length_fields=("max_tokens",), extra=extra
    )
    options = read_options(chat, service)
    return Asked(
        [messages],
        params,
        form,
        ErrorEvent(PATH, "error"),
        is_stream,
        tools,
        tool_choice,
        options,
        one_call,
        chat.ignored(),
    )


def read_conversation(fields: Fields) -> tuple[Fields, list[dict[str, Any]]]:
    """Return the request with members in the form of chat completions, and its messages."""
    fields.refuse(UNSUPPORTED)
    messages: list[dict[str, Any]] = []
    if system := fields.raw("system"):
        messages.append({"role": "system", "content": _text_of(system)})
    given = fields.take("messages", list, [])
    if not given:
        raise RequestError(400, "messages must be a list of at least one.", param="messages")
    for message in given:
        messages += _read_message(message)
    members = _as_of_chat(fields)
    # An assistant's message at the end is the beginning of the answer.
    is_begun = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    if is_begun and fields.raw("continue_final_message") is None:
        members["continue_final_message"] = True
    return fields.with_members(members), messages


def _as_of_chat(fields: Fields) -> dict[str, Any]:
    members: dict[str, Any] = {}
    if tools := fields.take("tools", list):
        members["tools"] = list(map(_read_tool, tools))
    choice = fields.inner("tool_choice")
    kind = choice.take("type", str, "auto")
    if kind == "tool":
        name = {"name": choice.take("name", str)}
        members["tool_choice"] = {"type": "function", "function": name}
    elif kind in _CHOICES:
        members["tool_choice"] = _CHOICES[kind]
    else:
        raise choice.wrong("type", "auto, any, tool or none", kind)
    members["parallel_tool_calls"] = not choice.take("disable_parallel_tool_use", bool, False)
    thinking = fields.inner("thinking")
    kind = thinking.take("type", str)
    if kind not in _THINKING and fields.raw("thinking"):
        raise thinking.wrong("type", "enabled, disabled or adaptive", kind)
    if kind in ("enabled", "disabled"):
        members["enable_thinking"] = kind == "enabled"
    if kind == "enabled" and (budget := thinking.raw("budget_tokens")) is not None:
        members["thinking_token_budget"] = budget
    return members


def _read_tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type", "custom") != "custom":
        raise RequestError(400, f"Only tools of type custom can be offered, got {tool!r:.80}.")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema", {})}
    if "description" in tool:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _read_message(message: Any) -> list[dict[str, Any]]:
    """One message, or several: results of tools are messages of their own elsewhere."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(400, f"Messages must be objects with a role, got {message!r:.80}.")
    content = message.get("content")
    if not isinstance(content, list):
        return [{"role": message["role"], "content": content}]
    results: list[dict[str, Any]] = []
    own: dict[str, Any] = {"role": message["role"]}
    texts: list[Any] = []
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_result":
            result = {"role": "tool", "tool_call_id": block.get("tool_use_id")}
            results.append(result | {"content": _text_of(block.get("content", ""))})
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input")}
            call = {"id": block.get("id"), "type": "function", "function": function}
            own.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            own["reasoning_content"] = block.get("thinking")
        elif kind != "redacted_thinking":
            texts += _text_of([block])
    if texts or "tool_calls" in own or not results:
        results.append(own | {"content": texts or None})
    return results


def _text_of(content: Any) -> Any:
    """Text blocks without what only Anthropic reads; others are refused further on."""
    if not isinstance(content, list):
        return content
    return [
        {"type": "text", "text": block.get("text")}
        if isinstance(block, Mapping) and block.get("type") == "text"
        else block
        for block in content
    ]


class MessageForm:
    """Writes a message, and the events by which it grows."""

    def __init__(self, model: str) -> None:
        self._blocks = Blocks()
        self._last = Part(0)
        self._head = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def begin(self, usage: Usage) -> Iterator[SseEvent]:
        """The message, still empty."""
        told = _write_usage(usage) | {"output_tokens": 0}
        end: dict[str, Any] = {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": told,
        }
        yield _event("message_start", message=self._head | end)

    def stream(self, part: Part, usage: Usage) -> Iterator[SseEvent]:
        """The events of what is new."""
        if part.finish_reason is not None:
            self._last = part
        for change, block, text in self._blocks.add(part):
            yield self._write(change, block, text)

    def end(self, usage: Usage) -> Iterator[SseEvent]:
        """How the message ended."""
        for change, block, text in self._blocks.end():
            yield self._write(change, block, text)
        delta = _outcome(self._last)
        yield _event("message_delta", delta=delta, usage=_write_usage(usage))
        yield _event("message_stop")

    def whole(self, answers: Sequence[Part], usage: Usage) -> dict[str, Any]:
        """The message at once."""
        (answer,) = answers
        list(self._blocks.add(answer))
        content = list(map(_block, self._blocks.all))
        return self._head | {"content": content} | _outcome(answer) | {"usage": _write_usage(usage)}

    def _write(self, change: str, block: Block, text: str) -> SseEvent:
        if change == "begin":
            empty = Block(block.kind, block.index, block.call)
            return _event("content_block_start", index=block.index, content_block=_block(empty))
        if change == "end":
            return _event("content_block_stop", index=block.index)
        delta = {
            "reasoning": {"type": "thinking_delta", "thinking": text},
            "text": {"type": "text_delta", "text": text},
            "call": {"type": "input_json_delta", "partial_json": text},
        }[block.kind]
        return _event("content_block_delta", index=block.index, delta=delta)


def _block(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.call is None:
        return {"type": "text", "text": block.text}
    try:
        arguments = json.loads(block.text or "{}")
    except ValueError:  # cut off in the middle, or broken: the text itself is all there is
        arguments = block.text
    given = arguments if isinstance(arguments, dict) else {"input": arguments}
    return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": given}


def _outcome(part: Part) -> dict[str, Any]:
    reason = _REASONS[part.finish_reason or "stop"]
    text = part.stop_reason if isinstance(part.stop_reason, str) else None
    if text is not None and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": text}


def _write_usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.num_prompt - usage.num_cached,
        "cache_read_input_tokens": usage.num_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.num_new,
    }


def _event(kind: str, **members: Any) -> SseEvent:
    return kind, {"type": kind, **members}
