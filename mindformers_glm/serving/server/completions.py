"""/v1/completions, OpenAI's older form: texts or token ids that the model goes on with."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mindformers_glm.engine.llm_arguments import Prompt
from mindformers_glm.engine.logprobs import TokenLogprobs
from mindformers_glm.serving.server.answer_parts import Part, Usage
from mindformers_glm.serving.server.asked import Asked
from mindformers_glm.serving.server.chat_completions import (
    DONE,
    StreamOptions,
    read_stream,
    write_usage,
)
from mindformers_glm.serving.server.chat_fields import read_structure
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import ErrorEvent, SseEvent
from mindformers_glm.serving.server.fields import Fields
from mindformers_glm.serving.server.sampling_fields import read_logprobs_count, read_sampling
from mindformers_glm.serving.server.service import Service

PATH = "/v1/completions"
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "the model only goes on with a text"),
    "messages": ((), "use /v1/chat/completions"),
    "tools": (([],), "use /v1/chat/completions"),
    "prompt_embeds": ((), "give prompt"),
}


def read_completion(fields: Fields, service: Service) -> Asked:
    """Understand a request.

    Raises:
        RequestError: it is wrong.
    """
    fields.refuse(UNSUPPORTED)
    model = service.read_model(fields)
    prompts = read_prompts(fields)
    has_echo = fields.take("echo", bool, False)
    extra = read_structure(fields)
    count = read_logprobs_count(fields, "logprobs")
    if count is not None:
        extra["logprobs"] = count
        if has_echo:
            extra["prompt_logprobs"] = count
    is_stream, stream_options = read_stream(fields)
    if has_echo and is_stream and count is not None:
        raise RequestError(400, "echo with logprobs cannot be streamed: leave one out.")
    # Only the prompt is wanted: one token is computed, and not told.
    is_prompt_only = has_echo and fields.raw("max_tokens") == 0
    if is_prompt_only:
        fields = fields.without("max_tokens")
        extra["max_new_tokens"] = 1
    form = CompletionForm(
        model,
        service,
        prompts if has_echo else (),
        stream_options,
        is_prompt_only=is_prompt_only,
    )
    return Asked(
        prompts,
        read_sampling(fields, service.settings.sampling, extra=extra),
        form,
        ErrorEvent(PATH),
        is_stream,
        ignored=fields.ignored(),
    )


def read_prompts(fields: Fields) -> list[Prompt]:
    """The prompts: a text, several, a list of token ids, or several."""
    prompt = fields.raw("prompt")
    match prompt:
        case str():
            return [prompt]
        case [int(), *_]:
            return [prompt]
        case [str(), *_] if all(isinstance(item, str) for item in prompt):
            return prompt
        case [list(), *_] if all(isinstance(item, list) for item in prompt):
            return prompt
    raise fields.wrong("prompt", "a text, a list of token ids, or a list of either", prompt)


class CompletionForm:
    """Writes text_completion objects.

    Args:
        echoed: the prompts, where answers begin with them.
        is_prompt_only: nothing else is told.
    """

    def __init__(
        self,
        model: str,
        service: Service,
        echoed: Sequence[Prompt],
        stream_options: StreamOptions,
        *,
        is_prompt_only: bool,
    ) -> None:
        self._tokenizer = service.tokenizer
        self._echoed = echoed
        self._stream_options = stream_options
        self._is_prompt_only = is_prompt_only
        self._has_begun: set[int] = set()
        self._num_characters: dict[int, int] = {}
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": service.fingerprint,
        }

    def begin(self, usage: Usage) -> Iterable[SseEvent]:
        """Nothing."""
        return ()

    def stream(self, part: Part, usage: Usage) -> Iterator[SseEvent]:
        """A chunk for what is new."""
        text = "" if self._is_prompt_only else part.text
        if self._echoed and part.index not in self._has_begun:
            text = self._prompt_text(part) + text
        self._has_begun.add(part.index)
        if not (text or part.logprobs or part.finish_reason):
            return
        chunk = self._head | {"choices": [self._choice(part, text)]}
        if self._stream_options.continuous:
            chunk["usage"] = write_usage(usage)
        elif self._stream_options.include_usage:
            chunk["usage"] = None
        yield "", chunk

    def end(self, usage: Usage) -> Iterator[SseEvent]:
        """The usage if it was asked for, and the end mark."""
        if self._stream_options.include_usage:
            yield "", self._head | {"choices": [], "usage": write_usage(usage)}
        yield DONE

    def whole(self, answers: Sequence[Part], usage: Usage) -> dict[str, Any]:
        """The answers at once."""
        choices = []
        for answer in answers:
            text = "" if self._is_prompt_only else answer.text
            choices.append(self._choice(answer, self._prompt_text(answer) + text))
        return self._head | {"choices": choices, "usage": write_usage(usage)}

    def _prompt_text(self, part: Part) -> str:
        if not self._echoed:
            return ""
        prompt = self._echoed[part.prompt_index]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)  # type: ignore[arg-type]

    def _choice(self, part: Part, text: str) -> dict[str, Any]:
        return {
            "index": part.index,
            "text": text,
            "logprobs": None if part.logprobs is None else self._logprobs(part),
            "finish_reason": "length" if self._is_prompt_only else part.finish_reason,
            "stop_reason": part.stop_reason,
        }

    def _logprobs(self, part: Part) -> dict[str, Any]:
        entries: list[tuple[int, TokenLogprobs | None]] = []
        if part.prompt_logprobs is not None:
            entries += zip(part.prompt_token_ids, part.prompt_logprobs, strict=True)
        if not self._is_prompt_only:
            entries += zip(part.token_ids, part.logprobs or (), strict=True)
        offset = self._num_characters.get(part.index, 0)
        tokens: list[str] = []
        offsets: list[int] = []
        for token_id, entry in entries:
            own = None if entry is None else entry[token_id].decoded_token
            tokens.append(self._tokenizer.decode_token(token_id) if own is None else own)
            offsets.append(offset)
            offset += len(tokens[-1])
        self._num_characters[part.index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [
                None if entry is None else entry[token_id].logprob for token_id, entry in entries
            ],
            "top_logprobs": [_likeliest(entry) for _, entry in entries],
            "text_offset": offsets,
        }


def _likeliest(entry: TokenLogprobs | None) -> dict[str, float] | None:
    """By the tokens' texts; of two with the same one the likelier."""
    if entry is None:
        return None
    found: dict[str, float] = {}
    for item in sorted(entry.values(), key=lambda item: item.rank):
        found.setdefault(item.decoded_token, item.logprob)
    return found
