"""Reads the JSON of a request: bounded in bytes, depth and time."""

import asyncio
import json
import re
from typing import Any

from starlette.requests import Request

from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.tokenizer.tool_call import read_json

MAX_DEPTH = 128  # schemas and tools nest; nothing sensible goes deeper
_PATIENCE = 16  # bodies so many times too large are read to their end
_LARGE = 64 * 1024  # bytes from which reading is done beside the event loop
# None of them ever looks at a character twice: also a string without an end is a match.
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_STRING = re.compile(r'"[^"]*(?:"|\Z)')
_BRACKET = re.compile(r"[\[{\]}]")


async def read_json_object(request: Request, max_bytes: int, timeout_s: float) -> dict[str, Any]:
    """Read the body of a request.

    Raises:
        RequestError: it is too large or too slow, of another type, or no JSON object.
        starlette's ClientDisconnect: nobody is there any more.
    """
    _check_type(request.headers.get("content-type"))
    try:
        body = await asyncio.wait_for(read_body(request, max_bytes), timeout_s)
    except asyncio.TimeoutError:
        raise RequestError(
            408, f"The request's body did not arrive within {timeout_s:g} s: send it faster."
        ) from None
    if len(body) > _LARGE:
        return await asyncio.to_thread(parse_object, body)
    return parse_object(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse the JSON object of a body.

    Raises:
        RequestError: it is none, or is nested more deeply than `MAX_DEPTH`.
    """
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        parsed = read_json(text)
    except UnicodeDecodeError:
        raise RequestError(400, "The request's body is not UTF-8 text.") from None
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno} column {problem.colno}"
        raise RequestError(
            400, f"The request's body is not valid JSON: {problem.msg} ({where})."
        ) from None
    except ValueError as problem:
        raise RequestError(400, f"The request's body is not valid JSON: {problem}.") from None
    if not isinstance(parsed, dict):
        raise RequestError(400, f"The body must be a JSON object, got a {type(parsed).__name__}.")
    return parsed


def _check_type(given: str | None) -> None:
    """JSON only: a web page may post other types to any address without asking."""
    kind = (given or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise RequestError(
            415, "The content-type must be application/json: give it as a header of the request."
        )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read all bytes of a request's body.

    Raises:
        RequestError: there are more than `max_bytes`.
    """
    parts: list[bytes] = []
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes <= max_bytes:
            parts.append(part)
        else:
            parts.clear()  # read and dropped: many clients hear nothing until they have sent all
            if num_bytes > max_bytes * _PATIENCE:
                break
    if num_bytes > max_bytes:
        raise RequestError(
            413,
            f"The request's body has more than {max_bytes} bytes: send less, or raise "
            "max_body_size.",
            headers={"connection": "close"},
        )
    return b"".join(parts)


def _check_depth(text: str) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", _ESCAPED.sub("", text))):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise RequestError(
                400, f"The request's JSON is nested more than {MAX_DEPTH} deep: send a flatter one."
            )
