"""A chat with a server that has OpenAI's routes, ours or another one."""

import http.client
import json
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from mindformers_glm.core.errors import ConfigError, GlmError, first_words
from mindformers_glm.serving.chat.model import Message, Piece
from mindformers_glm.tokenizer.replies import ParsedReply
from mindformers_glm.tokenizer.tool_call import ToolCall

_WAIT_S = 600.0  # for the next byte: a long prompt takes its time
_WAIT_FOR_NAMES_S = 30.0  # servers tell these at once
_MAX_LINE = 2**24
# Fields of SamplingParams -> what servers call them, where they do not say the same.
_FIELDS = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


def is_url(text: str) -> bool:
    """Whether it names a server and no folder."""
    return text.lower().startswith(("http://", "https://"))


def sampling_fields(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request's fields for the sampling settings that are set.

    Raises:
        ConfigError: OpenAI's routes have no such setting.
    """
    given = {name: value for name, value in sampling.items() if value not in (None, ())}
    if "max_length" in given:
        raise ConfigError("max_length has no field in OpenAI's requests: give --max_new_tokens.")
    if given.pop("do_sample", None) is False:
        given["temperature"] = 0.0
    return {_FIELDS.get(name, name): value for name, value in given.items()}


class ServerModel:
    """A model behind a URL.

    Args:
        url: with or without the /v1 of the routes.
        model: its name there; "": the first one of /v1/models.
        fields: what each request says besides messages and tools.
    Attributes:
        is_stopped: whether `stop` was called.
    Raises:
        GlmError: the URL is none, or nothing answers there as such a server does.
    """

    raises_when_stopped = True

    def __init__(
        self, url: str, *, model: str = "", api_key: str = "", fields: Mapping[str, Any]
    ) -> None:
        try:
            parts = urlsplit(url)
            self._address = (parts.hostname or "", parts.port)
        except ValueError:
            parts = None
        if parts is None or not parts.hostname or parts.username or parts.query:
            raise ConfigError(
                f"The URL {url} is none of a server: write it as http://HOST:PORT or "
                "https://HOST:PORT/v1."
            )
        self._is_tls = parts.scheme.lower() == "https"
        self._prefix = parts.path.rstrip("/") or "/v1"
        self._url, self._fields = url, dict(fields)
        self._socket: socket.socket | None = None  # of the answer under way
        self.is_stopped = False
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self.name = model or self.model_names()[0]

    def answer(
        self, messages: Sequence[Message], tools: Sequence[Any]
    ) -> Generator[Piece, None, None]:
        """Answer a conversation; closing it closes the connection, which ends the request."""
        body: dict[str, Any] = {
            "model": self.name,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._fields,
        }
        if tools:
            body["tools"] = list(tools)
        num_tokens, reason = 0, None
        try:
            with self._request("POST", "/chat/completions", body) as response:
                for event in self._events(response):
                    usage = event.get("usage") or {}
                    num_tokens = usage.get("completion_tokens", num_tokens)
                    for choice in event.get("choices", ())[:1]:
                        reason = choice.get("finish_reason") or reason
                        if reply := _read_delta(choice.get("delta") or {}):
                            yield Piece(reply)
        except GlmError:
            if not self.is_stopped:  # else it is what comes of a closed connection
                raise
        if reason is None and not self.is_stopped:
            raise GlmError(f"{self._url} has ended the answer before it was complete: ask again.")
        yield Piece(num_tokens=num_tokens, finish_reason=reason)

    def close(self) -> None:
        """Nothing is left open: each answer has a connection of its own."""

    def stop(self) -> None:
        """End the answer under way from another thread; `answer` then ends as after its last piece.

        The server sees a closed connection. There are no more answers afterwards.
        """
        self.is_stopped = True
        if (connected := self._socket) is not None:
            with suppress(OSError):  # it is closed already
                # Not SSLSocket's own, which takes the TLS state away from the thread that reads.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def model_names(self) -> list[str]:
        """The names of all models there.

        Raises:
            GlmError: nothing answers, or not as such a server does.
        """
        with self._request("GET", "/models", wait_s=_WAIT_FOR_NAMES_S) as response:
            try:
                names = [str(model["id"]) for model in json.loads(response.read())["data"]]
            except (ValueError, LookupError, TypeError):
                names = []
        if not names:
            raise GlmError(
                f"{self._url} names no model at {self._prefix}/models: say which one with "
                "--model NAME."
            )
        return names

    @contextmanager
    def _request(
        self, method: str, path: str, body: Any = None, *, wait_s: float = _WAIT_S
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        content = None if body is None else json.dumps(body).encode()
        with closing(kind(*self._address, timeout=wait_s)) as connection:
            try:
                connection.request(method, f"{self._prefix}{path}", content, self._headers)
                self._socket = connection.sock
                if self.is_stopped:
                    self.stop()
                response = connection.getresponse()
                if response.status != 200:
                    raise self._refusal(response)
                yield response
            except (OSError, http.client.HTTPException) as problem:
                reason = first_words(problem) or type(problem).__name__
                raise GlmError(
                    f"{self._url} does not answer ({reason}): check the URL and whether the server "
                    "runs."
                ) from None

    def _refusal(self, response: http.client.HTTPResponse) -> GlmError:
        text = response.read(_MAX_LINE)
        try:
            said = str(json.loads(text)["error"]["message"])
        except (ValueError, LookupError, TypeError):
            said = response.reason
        if response.status in (401, 403):
            said += " (--api_key_file FILE gives a key)"
        return GlmError(f"{self._url} refuses this with status {response.status}: {said}")

    def _events(self, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        while line := response.readline(_MAX_LINE):
            field, _, data = line.decode("utf-8", "replace").rstrip("\r\n").partition(":")
            data = data.strip()
            if field != "data" or data == "[DONE]":
                continue
            try:
                event = json.loads(data)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                raise GlmError(f"{self._url} sends what is no event of OpenAI's: {data[:80]!r}.")
            if (error := event.get("error")) is not None:
                said = error.get("message") if isinstance(error, dict) else error
                raise GlmError(f"{self._url} has failed: {said}")
            yield event


def _read_delta(delta: Mapping[str, Any]) -> ParsedReply:
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    calls = []
    for call in delta.get("tool_calls") or ():
        function = call.get("function") or {}
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        calls.append(ToolCall(name, arguments, call.get("id") or ""))
    return ParsedReply(delta.get("content") or "", thought, tuple(calls))
