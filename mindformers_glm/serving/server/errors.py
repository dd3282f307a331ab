"""Errors as the answer to a request, in the form that its route's clients read."""

import traceback
from collections.abc import Mapping
from typing import Any

from mindformers_glm.core.errors import CheckpointError, GlmError, first_words
from mindformers_glm.system.log import is_verbose, write_line

# What a client is told of a defect of this program.
DEFECT = "The server has a defect: see its log."

# Status -> OpenAI's type, Anthropic's type, TGI's error_type.
_TYPES = {
    400: ("invalid_request_error", "invalid_request_error", "validation"),
    401: ("invalid_request_error", "authentication_error", "authentication"),
    403: ("permission_error", "permission_error", "validation"),
    404: ("invalid_request_error", "not_found_error", "validation"),
    405: ("invalid_request_error", "invalid_request_error", "validation"),
    408: ("timeout_error", "timeout_error", "timeout"),
    413: ("invalid_request_error", "request_too_large", "validation"),
    415: ("invalid_request_error", "invalid_request_error", "validation"),
    429: ("rate_limit_error", "rate_limit_error", "overloaded"),
    503: ("service_unavailable_error", "overloaded_error", "unhealthy"),
    504: ("timeout_error", "timeout_error", "timeout"),
}
_DEFECT = ("server_error", "api_error", "generation")
_ANTHROPIC = "/v1/messages"
_TGI = ("/generate", "/generate_stream")


class RequestError(Exception):
    """A request that is not answered as it asks to be.

    Args:
        status: of HTTP.
        message: one sentence for the client.
        param: the field that is wrong.
        code: a word for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, problem: GlmError, param: str | None = None) -> "RequestError":
        """What a sentence of the engine or the tokenizer means to a client."""
        # A broken checkpoint is the server's business; its message names files.
        if isinstance(problem, CheckpointError):
            return cls(500, "The model's chat template failed: see the server's log.")
        return cls(400, str(problem), param=param)

    def body(self, path: str) -> dict[str, Any]:
        """The answer's JSON, as the clients of this route expect it."""
        openai, anthropic, tgi = _TYPES.get(self.status, _DEFECT)
        if path.startswith(_ANTHROPIC):
            return {"type": "error", "error": {"type": anthropic, "message": self.message}}
        if path in _TGI:
            return {"error": self.message, "error_type": tgi}
        error = {"message": self.message, "type": openai, "param": self.param, "code": self.code}
        return {"error": error}


def tell_defect(problem: Exception) -> None:
    """Tell the server's log of a defect of this program."""
    write_line(f"error: internal error, {type(problem).__name__}: {first_words(problem)!r:.300}")
    if is_verbose():
        traceback.print_exception(problem)
