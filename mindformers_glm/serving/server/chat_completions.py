"""/v1/chat/completions, in OpenAI's form with vLLM's additions (reasoning_content)."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mindformers_glm.engine.logprobs import Logprob, TokenLogprobs
from mindformers_glm.serving.server.answer_parts import CallPart, Part, Usage
from mindformers_glm.serving.server.asked import Asked
from mindformers_glm.serving.server.chat_fields import read_options, read_structure, read_tools
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import ErrorEvent, SseEvent
from mindformers_glm.serving.server.fields import Fields
from mindformers_glm.serving.server.sampling_fields import read_logprobs_count, read_sampling
from mindformers_glm.serving.server.service import Service

PATH = "/v1/chat/completions"
DONE: SseEvent = ("", "[DONE]")


def read_chat(fields: Fields, service: Service) -> Asked:
    """Understand a request.

    Raises:
        RequestError: it is wrong.
    """
    model = service.read_model(fields)
    messages = read_messages_field(fields)
    tools, tool_choice, one_call = read_tools(fields)
    extra = read_structure(fields)
    top_logprobs = read_logprobs_count(fields, "top_logprobs")
    if fields.take("logprobs", bool, False):
        extra["logprobs"] = top_logprobs or 0
    elif top_logprobs:
        raise RequestError(400, "top_logprobs needs logprobs true.", param="top_logprobs")
    is_stream, stream_options = read_stream(fields)
    form = ChatForm(
        model,
        service.fingerprint,
        stream_options,
        num_top=top_logprobs or 0,
        shows_reasoning=fields.take("include_reasoning", bool, True),
        returns_token_ids=fields.take("return_token_ids", bool, False),
    )
    return Asked(
        [messages],
        read_sampling(fields, service.settings.sampling, extra=extra),
        form,
        ErrorEvent(PATH),
        is_stream,
        tools,
        tool_choice,
        read_options(fields, service),
        one_call,
        fields.ignored(),
    )


def read_messages_field(fields: Fields) -> list[Any]:
    """The conversation; what is in the messages is checked where they are written."""
    messages: list[Any] = fields.take("messages", list, [])
    if not messages:
        raise RequestError(
            400,
            'messages must be a list of at least one message, such as {"role": "user", "content": '
            '"..."}.',
            param="messages",
        )
    if not all(isinstance(message, Mapping) for message in messages):
        raise RequestError(400, "messages must hold objects.", param="messages")
    return messages


class StreamOptions:
    """When a stream tells how many tokens there are."""

    def __init__(self, fields: Fields) -> None:
        self.include_usage = fields.take("include_usage", bool, False)
        self.continuous = fields.take("continuous_usage_stats", bool, False)


def read_stream(fields: Fields) -> tuple[bool, StreamOptions]:
    """Whether the answer comes as events, and what these tell."""
    is_stream = fields.take("stream", bool, False)
    options = StreamOptions(fields.inner("stream_options"))
    if fields.raw("stream_options") and not is_stream:
        raise RequestError(400, "stream_options needs stream true.", param="stream_options")
    return is_stream, options


class ChatForm:
    """Writes chat.completion and chat.completion.chunk."""

    def __init__(
        self,
        model: str,
        fingerprint: str,
        stream_options: StreamOptions,
        *,
        num_top: int,
        shows_reasoning: bool,
        returns_token_ids: bool,
    ) -> None:
        self._stream_options = stream_options
        self._num_top = num_top
        self._shows_reasoning = shows_reasoning
        self._returns_token_ids = returns_token_ids
        self._has_role: set[int] = set()
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def begin(self, usage: Usage) -> Iterable[SseEvent]:
        """Nothing: the first chunk has the role."""
        return ()

    def stream(self, part: Part, usage: Usage) -> Iterator[SseEvent]:
        """A chunk for what is new; none while nothing of it is certain."""
        if part.index not in self._has_role:
            self._has_role.add(part.index)
            yield self._chunk(part.index, {"role": "assistant", "content": ""}, usage)
        delta: dict[str, Any] = {}
        if part.content:
            delta["content"] = part.content
        if part.reasoning and self._shows_reasoning:
            delta["reasoning_content"] = part.reasoning
        for call in part.calls:
            # Clients put calls together from pieces; one piece for each keeps simple ones happy.
            yield self._chunk(part.index, {"tool_calls": [_call(call)]}, usage)
        is_told = part.logprobs or self._returns_token_ids or part.finish_reason
        if delta or is_told:
            yield self._chunk(part.index, delta, usage, part)

    def end(self, usage: Usage) -> Iterator[SseEvent]:
        """The usage if it was asked for, and the end mark."""
        if self._stream_options.include_usage:
            head = self._head | {"object": "chat.completion.chunk"}
            yield "", head | {"choices": [], "usage": write_usage(usage)}
        yield DONE

    def whole(self, answers: Sequence[Part], usage: Usage) -> dict[str, Any]:
        """The answer at once."""
        return self._head | {
            "object": "chat.completion",
            "choices": [self._choice(answer) for answer in answers],
            "usage": write_usage(usage),
        }

    def _choice(self, answer: Part) -> dict[str, Any]:
        calls = [_call(call) for call in answer.calls]
        for call in calls:
            del call["index"]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.content if answer.content or not calls else None,
            "refusal": None,
        }
        if answer.reasoning and self._shows_reasoning:
            message["reasoning_content"] = answer.reasoning
        if calls:
            message["tool_calls"] = calls
        choice = {"index": answer.index, "message": message} | self._outcome(answer)
        return choice

    def _outcome(self, part: Part) -> dict[str, Any]:
        told = {
            "logprobs": None if part.logprobs is None else write_logprobs(part, self._num_top),
            "finish_reason": part.finish_reason,
            "stop_reason": part.stop_reason,
        }
        return told | ({"token_ids": part.token_ids} if self._returns_token_ids else {})

    def _chunk(
        self, index: int, delta: Mapping[str, Any], usage: Usage, part: Part | None = None
    ) -> SseEvent:
        outcome = self._outcome(part) if part else {"logprobs": None, "finish_reason": None}
        choice = {"index": index, "delta": delta} | outcome
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        if self._stream_options.continuous:
            chunk["usage"] = write_usage(usage)
        elif self._stream_options.include_usage:
            chunk["usage"] = None
        return "", chunk


def write_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's counts of tokens."""
    return {
        "prompt_tokens": usage.num_prompt,
        "completion_tokens": usage.num_new,
        "total_tokens": usage.num_prompt + usage.num_new,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached},
        "completion_tokens_details": {"reasoning_tokens": usage.num_reasoning},
    }


def write_logprobs(part: Part, num_top: int) -> dict[str, Any]:
    """OpenAI's log-probabilities of a chat, with so many likeliest tokens."""
    pairs = zip(part.token_ids, part.logprobs or (), strict=True)
    content = [_token(token_id, entry, num_top) for token_id, entry in pairs]
    return {"content": content, "refusal": None}


def _token(token_id: int, entry: TokenLogprobs, num_top: int) -> dict[str, Any]:
    # The token itself is told besides the likeliest; it stands among them if it is one.
    likeliest = sorted(entry.values(), key=lambda item: item.rank)[:num_top]
    return _logprob(entry[token_id]) | {"top_logprobs": list(map(_logprob, likeliest))}


def _logprob(item: Logprob) -> dict[str, Any]:
    text = item.decoded_token
    # A part of a character has no text, and its bytes are not those of the mark in its place.
    encoded = None if "\ufffd" in text else list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": item.logprob, "bytes": encoded}


def _call(call: CallPart) -> dict[str, Any]:
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
