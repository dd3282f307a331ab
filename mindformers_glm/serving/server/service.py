"""Answers what routes have understood: room in the queue, tokens, the engine, the form."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.llm_arguments import Prompt
from mindformers_glm.engine.request_frontend import Request
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.server.answer_parts import Part, PartReader, join_parts
from mindformers_glm.serving.server.asked import Asked
from mindformers_glm.serving.server.engine_link import Answers, EngineLink
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.event_stream import (
    EventStream,
    SseEvent,
    to_json,
    wait_until_gone,
)
from mindformers_glm.serving.server.fields import Fields
from mindformers_glm.serving.server.json_body import read_json_object
from mindformers_glm.version import __version__

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class ServiceSettings:
    """What the routes were told at the start.

    Attributes:
        folder: of the checkpoint, which no answer names.
        model_names: a request may call the model by one of these, the first is its own.
        any_model_name: or by any other.
        sampling: fields of SamplingParams that a request leaves open.
        max_body_bytes, client_timeout_s, keep_alive_s: as the settings of the server.
    """

    folder: str
    model_names: tuple[str, ...]
    any_model_name: bool
    sampling: Mapping[str, Any]
    max_body_bytes: int
    client_timeout_s: float
    keep_alive_s: float


class Service:
    """What all routes share."""

    def __init__(self, link: EngineLink, llm: LLM, settings: ServiceSettings) -> None:
        self.link = link
        self.settings = settings
        self.tokenizer = llm.tokenizer
        self.frontend = llm.frontend
        self.max_model_len = llm.settings.max_model_len
        self.created_s = int(time.time())
        self.can_think = llm.frontend.reply_parsers.reasoning != "none"
        self._has_length_limit = llm.engine.defaults.has_length_limit

    @property
    def model_name(self) -> str:
        """The model's own name."""
        return self.settings.model_names[0]

    def without_folder(self, message: str) -> str:
        """A sentence with the model's name where it has the checkpoint's folder."""
        return message.replace(self.settings.folder, self.model_name)

    @property
    def fingerprint(self) -> str:
        """What `system_fingerprint` says: answers to one seed are those of one version."""
        return f"mindformers-glm-{__version__}"

    async def read_fields(self, http: HttpRequest) -> Fields:
        """Read a request's body."""
        limits = self.settings
        return Fields(await read_json_object(http, limits.max_body_bytes, limits.client_timeout_s))

    def read_model(self, fields: Fields) -> str:
        """The name by which a request calls the model; ours where it calls it none.

        Raises:
            RequestError: with status 404, there is no such model.
        """
        name: str = fields.take("model", str, self.model_name)
        self.check_model(name)
        return name

    def check_model(self, name: str) -> None:
        """Raises RequestError with status 404 where there is no such model."""
        if name not in self.settings.model_names and not self.settings.any_model_name:
            raise RequestError(
                404,
                f"The model {name!r:.80} does not exist: this server has {self.model_name}.",
                param="model",
                code="model_not_found",
            )

    async def answer(self, http: HttpRequest, asked: Asked) -> Response | EventStream:
        """Answer a request, whole or as a stream.

        Raises:
            RequestError: it cannot be answered; nothing was sent yet.
            ClientGoneError: nobody waits any more.
        """
        answers = self.link.admit(asked.params.n * len(asked.prompts))
        try:
            whole_only = not asked.is_stream and not asked.one_call
            begun = self._begin(answers, asked, whole_only=whole_only)
            reader = await until_gone(http, begun)
            headers = warning_headers(asked.ignored)
            if asked.is_stream:
                events = self._stream(http, answers, reader, asked)
                timeout_s = self.settings.client_timeout_s
                return EventStream(events, asked.error_event, headers, timeout_s, answers.close)
            parts = await until_gone(http, _collect(answers, reader))
            whole = join_parts(parts, len(asked.prompts) * asked.params.n)
            note_usage(http, reader)
            body = asked.form.whole(whole, reader.usage)
        except BaseException:
            answers.close()
            raise
        answers.close()
        return json_response(body, headers=headers)

    async def _begin(self, answers: Answers, asked: Asked, *, whole_only: bool) -> PartReader:
        requests = await self.link.run_beside(lambda: self._encode(asked))
        answers.submit(requests, whole_only=whole_only)
        await answers.accepted()
        return PartReader(requests, whole_only, self._count_tokens, asked.one_call)

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer.vocabulary.encode_within(text))

    def _encode(self, asked: Asked) -> list[Request]:
        params = asked.params
        if not self._has_length_limit(params):
            params = replace(params, max_new_tokens=self.max_model_len)  # the engine cuts it there
        return [self._new_request(prompt, params, asked) for prompt in asked.prompts]

    def _new_request(self, prompt: Prompt, params: SamplingParams, asked: Asked) -> Request:
        if isinstance(prompt, str):  # to be gone on with, whatever the model makes of texts
            prompt = self.frontend.encode_text(prompt)
        return self.frontend.new_request(
            self.link.new_id(),
            prompt,
            params,
            asked.tools,
            asked.tool_choice,
            asked.options,
            parallel_tool_calls=not asked.one_call,
        )

    async def _stream(
        self, http: HttpRequest, answers: Answers, reader: PartReader, asked: Asked
    ) -> AsyncGenerator[Iterable[SseEvent], None]:
        form = asked.form
        has_begun = False
        try:
            while not reader.is_done:
                outputs = await answers.next(self.settings.keep_alive_s)
                if outputs is None:
                    yield [None]
                    continue
                events: list[SseEvent] = []
                for part in _read_all(reader, outputs):
                    if not has_begun:
                        has_begun = True
                        events += form.begin(reader.usage)
                    events += form.stream(part, reader.usage)
                yield events
            yield form.end(reader.usage)
        finally:
            answers.close()
            note_usage(http, reader)


async def _collect(answers: Answers, reader: PartReader) -> list[Part]:
    parts: list[Part] = []
    while not reader.is_done:
        parts += _read_all(reader, await answers.next() or ())
    return parts


def _read_all(reader: PartReader, outputs: Sequence[tuple[int, RequestOutput]]) -> Iterable[Part]:
    for place, output in outputs:
        yield from reader.read(place, output)


async def until_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """Do something for as long as the client is there.

    Raises:
        ClientGoneError: it has closed the connection; the work was cancelled.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(wait_until_gone(http.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return await working
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def json_response(
    body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON."""
    return Response(to_json(body), status, headers, media_type="application/json")


def warning_headers(ignored: Sequence[str]) -> dict[str, str]:
    """Name the fields of a request that were not read."""
    if not ignored:
        return {}
    return {"warning": f'299 mindformers-glm "ignored fields: {" ".join(ignored)}"'}


def note_usage(http: HttpRequest, reader: PartReader) -> None:
    """Tell the access log how much it was."""
    http.scope.setdefault("state", {})["usage"] = reader.usage
