"""/v1/responses, OpenAI's newer form; nothing is stored."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mindformers_glm.serving.server.answer_parts import Part, Usage
from mindformers_glm.serving.server.asked import Asked
from mindformers_glm.serving.server.blocks import Block, Blocks
from mindformers_glm.serving.server.chat_fields import read_options, read_structure, read_tools
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import ErrorEvent, SseEvent
from mindformers_glm.serving.server.fields import Fields
from mindformers_glm.serving.server.sampling_fields import read_sampling
from mindformers_glm.serving.server.service import Service

PATH = "/v1/responses"
_NOT_STORED = "nothing is stored here: send the whole conversation as input"
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "background": ((False,), "wait for the answer"),
    "conversation": ((), _NOT_STORED),
    "previous_response_id": ((), _NOT_STORED),
    "prompt": ((), _NOT_STORED),
    "truncation": (("disabled",), "shorten the input"),
    "top_logprobs": ((0,), "use /v1/chat/completions"),
    "max_tool_calls": ((), "set parallel_tool_calls false"),
    "n": ((1,), "send several requests"),
    "response_format": ((), "use text.format"),
}
_UNSUPPORTED_TEXT: dict[str, tuple[tuple[Any, ...], str]] = {
    "verbosity": (("medium",), "say it in a message"),
}
# Members of a Response that repeat the request, with their defaults.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "user": None,
}
_ITEM_IDS = {"reasoning": "rs_", "text": "msg_", "call": "fc_"}


def read_response(fields: Fields, service: Service) -> Asked:
    """Understand a request.

    Raises:
        RequestError: it is wrong.
    """
    fields.refuse(UNSUPPORTED)
    if any(value is not None for value in fields.take("reasoning", dict, {}).values()):
        raise RequestError(
            400,
            "reasoning is not supported: use chat_template_kwargs where the template reads one.",
            param="reasoning",
        )
    repeated = {name: fields.raw(name, default) for name, default in _REPEATED.items()}
    messages = _read_input(fields)
    if instructions := fields.take("instructions", str):
        messages.insert(0, {"role": "system", "content": instructions})
    for name in ("store", "include", "metadata"):
        fields.raw(name)  # of no consequence where nothing is stored
    is_stream = fields.take("stream", bool, False)
    fields.take("stream_options", dict)
    chat = fields.with_members(_as_of_chat(fields))
    tools, tool_choice, one_call = read_tools(chat)
    for tool in tools or ():
        if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
            raise RequestError(400, f"Only functions can be tools, got {tool!r:.80}.")
    form = ResponseForm(service.read_model(fields), repeated)
    params = read_sampling(
        chat,
        service.settings.sampling,
        length_fields=("max_output_tokens",),
        extra=read_structure(chat),
    )
    options = read_options(chat, service)
    return Asked(
        [messages],
        params,
        form,
        form.write_error,
        is_stream,
        tools,
        tool_choice,
        options,
        one_call,
        chat.ignored(),
    )


def not_stored(response_id: str) -> RequestError:
    """The answer to a request for an earlier response."""
    return RequestError(
        404, f"Response {response_id!r:.80} is not here: this server stores none.", param="id"
    )


def _as_of_chat(fields: Fields) -> dict[str, Any]:
    """The members that chat completions have in another form."""
    members: dict[str, Any] = {}
    choice = fields.raw("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        members["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    text = fields.inner("text")
    text.refuse(_UNSUPPORTED_TEXT)
    structure = text.take("format", dict) or {"type": "text"}
    if structure.get("type") == "json_schema":
        schema = {key: value for key, value in structure.items() if key != "type"}
        structure = {"type": "json_schema", "json_schema": schema}
    return members | {"response_format": structure}


def _read_input(fields: Fields) -> list[dict[str, Any]]:
    given = fields.raw("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise fields.wrong("input", "a text or a list of items", given)
    messages: list[dict[str, Any]] = []
    for item in given:
        _add_item(messages, item)
    return messages


def _add_item(messages: list[dict[str, Any]], item: Any) -> None:
    """Add an item as a message; calls and thoughts go with the assistant's message they belong to.

    Raises:
        RequestError: it is none that can be written.
    """
    kind = item.get("type", "message") if isinstance(item, Mapping) else None
    if kind == "message" and isinstance(item.get("role"), str):
        content = _read_content(item.get("content"))
        if item["role"] == "assistant" and messages and _has_thoughts_only(messages[-1]):
            messages[-1]["content"] = content
        else:
            messages.append({"role": item["role"], "content": content})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        message = {"role": "tool", "tool_call_id": item.get("call_id")}
        messages.append(message | {"content": _read_content(item.get("output"))})
    elif kind == "reasoning":
        parts = item.get("content") or []
        thoughts = _read_content(parts)
        messages.append({"role": "assistant", "content": None, "reasoning_content": thoughts})
    else:
        raise RequestError(
            400,
            "Items of input must be messages, function_call, function_call_output or reasoning, "
            f"got {item!r:.80}.",
            param="input",
        )


def _has_thoughts_only(message: Mapping[str, Any]) -> bool:
    return message.get("content") is None and "tool_calls" not in message


def _read_content(content: Any) -> Any:
    """Text parts by the one name they have elsewhere; what is none is refused further on."""
    if not isinstance(content, list):
        return content
    texts = ("input_text", "output_text", "summary_text", "reasoning_text")
    return [
        {"type": "text", "text": part.get("text")}
        if isinstance(part, Mapping) and part.get("type") in texts
        else part
        for part in content
    ]


class ResponseForm:
    """Writes a Response, and the events by which it grows."""

    def __init__(self, model: str, repeated: Mapping[str, Any]) -> None:
        self.write_error = ErrorEvent(PATH, "error", self._flatten_error)
        self._blocks = Blocks()
        self._ids: list[str] = []
        self._number = 0
        self._reason: str | None = None
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "previous_response_id": None,
            "truncation": "disabled",
            "store": False,
            **repeated,
        }

    def begin(self, usage: Usage) -> Iterator[SseEvent]:
        """The response, still empty."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress", None))

    def stream(self, part: Part, usage: Usage) -> Iterator[SseEvent]:
        """The events of what is new."""
        self._reason = part.finish_reason or self._reason
        for change, block, text in self._blocks.add(part):
            yield from self._write(change, block, text)

    def end(self, usage: Usage) -> Iterator[SseEvent]:
        """The whole response."""
        for change, block, text in self._blocks.end():
            yield from self._write(change, block, text)
        status = self._status
        yield self._event(f"response.{status}", response=self._response(status, usage))

    def whole(self, answers: Sequence[Part], usage: Usage) -> dict[str, Any]:
        """The response at once."""
        self._reason = answers[0].finish_reason
        for change, _, _ in self._blocks.add(answers[0]):
            if change == "begin":
                self._new_id()
        return self._response(self._status, usage)

    @property
    def _status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def _response(self, status: str, usage: Usage | None) -> dict[str, Any]:
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        items = [self._item(block, "completed") for block in self._blocks.all]
        if status == "incomplete" and items:
            items[-1]["status"] = "incomplete"
        return self._head | {
            "status": status,
            "incomplete_details": reason,
            "output": items,
            "usage": None if usage is None else _write_usage(usage),
        }

    def _write(self, change: str, block: Block, text: str) -> Iterable[SseEvent]:
        if change == "begin":
            self._new_id()
        item_id = self._ids[block.index]
        place: dict[str, Any] = {"item_id": item_id, "output_index": block.index}
        if block.kind != "call":
            place["content_index"] = 0
        logprobs: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        stem = {
            "reasoning": "response.reasoning_text",
            "text": "response.output_text",
            "call": "response.function_call_arguments",
        }[block.kind]
        if change == "begin":
            item = self._item(block, "in_progress")
            item["content" if block.kind != "call" else "arguments"] = (
                [] if block.kind != "call" else ""
            )
            index = {"output_index": block.index}
            yield self._event("response.output_item.added", item=item, **index)
            if block.kind != "call":
                yield self._event("response.content_part.added", part=_content(block, ""), **place)
        elif change == "grow":
            yield self._event(f"{stem}.delta", delta=text, **place, **logprobs)
        else:
            name = "text" if block.kind != "call" else "arguments"
            yield self._event(f"{stem}.done", **{name: block.text}, **place, **logprobs)
            if block.kind != "call":
                part = _content(block, block.text)
                yield self._event("response.content_part.done", part=part, **place)
            item = self._item(block, "completed")
            yield self._event("response.output_item.done", item=item, output_index=block.index)

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._ids[block.index], "status": status}
        if block.call is not None:
            call = {"call_id": block.call.id, "name": block.call.name, "arguments": block.text}
            return item | {"type": "function_call"} | call
        content = [_content(block, block.text)]
        if block.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def _new_id(self) -> None:
        kind = self._blocks.all[len(self._ids)].kind
        self._ids.append(f"{_ITEM_IDS[kind]}{uuid.uuid4().hex}")

    def _event(self, kind: str, **members: Any) -> SseEvent:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number - 1, **members}

    def _flatten_error(self, body: dict[str, Any]) -> dict[str, Any]:
        """An error event of this API has no object around it."""
        error = body["error"]
        return {
            "type": "error",
            "code": error["code"] or error["type"],
            "message": error["message"],
            "param": error["param"],
            "sequence_number": self._number,
        }


def _content(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _write_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.num_prompt,
        "input_tokens_details": {"cached_tokens": usage.num_cached, "cache_write_tokens": 0},
        "output_tokens": usage.num_new,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning},
        "total_tokens": usage.num_prompt + usage.num_new,
    }
