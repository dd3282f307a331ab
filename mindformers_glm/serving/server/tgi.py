"""/generate and /generate_stream, as Text Generation Inference and MindIE have them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mindformers_glm.serving.server.answer_parts import Part, Usage
from mindformers_glm.serving.server.asked import Asked
from mindformers_glm.serving.server.chat_fields import read_structure
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import ErrorEvent, SseEvent
from mindformers_glm.serving.server.fields import Fields
from mindformers_glm.serving.server.sampling_fields import read_sampling
from mindformers_glm.serving.server.service import Service

PATH, STREAM_PATH = "/generate", "/generate_stream"
_DEFAULT_MAX_NEW_TOKENS = 100  # as TGI 2 and 3
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "truncate": ((), "shorten inputs"),
    "typical_p": ((1, 1.0), "use top_p"),
    "watermark": ((False,), "leave it out"),
    "adapter_id": ((), "leave it out"),
    "decoder_input_details": ((False,), "use /v1/completions with echo and logprobs"),
    "top_n_tokens": ((0,), "use /v1/completions with logprobs"),
}
_WISHES = ("do_sample", "temperature", "top_k", "top_p")


def read_generate(fields: Fields, service: Service) -> Asked:
    """Understand a request for a whole answer.

    Raises:
        RequestError: it is wrong.
    """
    return _read(fields, service, is_stream=False)


def read_generate_stream(fields: Fields, service: Service) -> Asked:
    """The same for a stream."""
    return _read(fields, service, is_stream=True)


def _read(fields: Fields, service: Service, *, is_stream: bool) -> Asked:
    text = fields.take("inputs", str)
    if text is None:
        raise RequestError(400, "inputs must be a text.", param="inputs")
    fields.take("stream", bool)  # the route says it
    given = fields.inner("parameters")
    given.refuse(UNSUPPORTED)
    extra: dict[str, Any] = {"logprobs": 0}
    grammar = given.inner("grammar")
    if (whole := given.raw("grammar")) is not None:
        kind, value = grammar.raw("type"), grammar.raw("value")
        if kind not in ("json", "regex") or value is None:
            raise given.wrong("grammar", '{"type": "json" or "regex", "value": ...}', whole)
        extra |= read_structure(Fields({f"guided_{kind}": value}))
    if all(given.raw(name) is None for name in _WISHES):
        extra["do_sample"] = False
    if given.raw("max_new_tokens") is None:
        extra["max_new_tokens"] = _DEFAULT_MAX_NEW_TOKENS
    params = read_sampling(
        given, service.settings.sampling, length_fields=("max_new_tokens",), extra=extra
    )
    if params.n != 1:
        raise RequestError(400, "n must be 1 here: send several requests.", param="n")
    form = GenerateForm(
        service,
        text if given.take("return_full_text", bool, False) else "",
        params.seed,
        has_details=given.take("details", bool, False),
    )
    path = STREAM_PATH if is_stream else PATH
    return Asked([text], params, form, ErrorEvent(path), is_stream, ignored=fields.ignored())


class GenerateForm:
    """Writes answers token by token; the last one brings the text."""

    def __init__(
        self, service: Service, prompt: str, seed: int | None, *, has_details: bool
    ) -> None:
        self._special = service.tokenizer.special_token_names
        self._prompt = prompt
        self._seed = seed
        self._has_details = has_details
        self._texts: list[str] = []
        self._num_tokens = 0

    def begin(self, usage: Usage) -> Iterable[SseEvent]:
        """Nothing."""
        return ()

    def stream(self, part: Part, usage: Usage) -> Iterator[SseEvent]:
        """An event for each token; their texts add up to the answer."""
        self._texts.append(part.text)
        tokens = self._tokens(part)
        for place, token in enumerate(tokens):
            self._num_tokens += 1
            is_last = place == len(tokens) - 1
            event = {
                "index": self._num_tokens,
                "token": token | {"text": part.text if is_last else ""},
                "generated_text": None,
                "details": None,
            }
            if is_last and part.finish_reason is not None:
                event["generated_text"] = self._prompt + "".join(self._texts)
                event["details"] = self._details(part, self._num_tokens)
            yield "", event

    def end(self, usage: Usage) -> Iterable[SseEvent]:
        """Nothing."""
        return ()

    def whole(self, answers: Sequence[Part], usage: Usage) -> dict[str, Any]:
        """The answer at once."""
        (answer,) = answers
        body: dict[str, Any] = {"generated_text": self._prompt + answer.text}
        if self._has_details:
            details = self._details(answer, len(answer.token_ids))
            body["details"] = details | {"prefill": [], "tokens": self._tokens(answer)}
        return body

    def _details(self, part: Part, num_tokens: int) -> dict[str, Any]:
        reason = "length" if part.finish_reason == "length" else "eos_token"
        if part.stop_reason is not None:
            reason = "stop_sequence"
        return {"finish_reason": reason, "generated_tokens": num_tokens, "seed": self._seed}

    def _tokens(self, part: Part) -> list[dict[str, Any]]:
        pairs = zip(part.token_ids, part.logprobs or (), strict=True)
        return [
            {
                "id": token_id,
                "text": entry[token_id].decoded_token,
                "logprob": entry[token_id].logprob,
                "special": token_id in self._special,
            }
            for token_id, entry in pairs
        ]
