"""The ASGI application: which route answers what, and what stands before all of them."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mindformers_glm.serving.server import (
    anthropic_messages,
    chat_completions,
    completions,
    responses,
    tgi,
    tokens,
)
from mindformers_glm.serving.server.asked import Asked
from mindformers_glm.serving.server.chat_fields import read_options, read_tools
from mindformers_glm.serving.server.door import AccessLog, KeyGuard, allow_origins, handle_errors
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.fields import Fields
from mindformers_glm.serving.server.metrics import CONTENT_TYPE
from mindformers_glm.serving.server.service import Service, json_response, warning_headers
from mindformers_glm.version import __version__

Handler = Callable[[HttpRequest, Service], Awaitable[ASGIApp]]
Reader = Callable[[Fields, Service], Asked]

# Routes that an answer of the model comes from, and what reads their requests.
_ANSWERING: dict[str, Reader] = {
    chat_completions.PATH: chat_completions.read_chat,
    completions.PATH: completions.read_completion,
    responses.PATH: responses.read_response,
    anthropic_messages.PATH: anthropic_messages.read_message,
    tgi.PATH: tgi.read_generate,
    tgi.STREAM_PATH: tgi.read_generate_stream,
}


async def _models(http: HttpRequest, service: Service) -> Response:
    names = service.settings.model_names
    return json_response({"object": "list", "data": [_model(name, service) for name in names]})


async def _one_model(http: HttpRequest, service: Service) -> Response:
    name = http.path_params["name"]
    service.check_model(name)
    return json_response(_model(name, service))


def _model(name: str, service: Service) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": service.created_s,
        "owned_by": "mindformers-glm",
        "root": service.model_name,
        "parent": None,
        "max_model_len": service.max_model_len,
    }


async def _health(http: HttpRequest, service: Service) -> Response:
    service.link.check_health()
    return Response()


async def _version(http: HttpRequest, service: Service) -> Response:
    return json_response({"version": __version__})


async def _metrics(http: HttpRequest, service: Service) -> Response:
    return PlainTextResponse(service.link.metrics.expose(), headers={"content-type": CONTENT_TYPE})


async def _no_response(http: HttpRequest, service: Service) -> Response:
    raise responses.not_stored(http.path_params["id"])


async def _count_tokens(http: HttpRequest, service: Service) -> Response:
    fields = await service.read_fields(http)
    service.read_model(fields)
    chat, messages = anthropic_messages.read_conversation(fields)
    tools, options = read_tools(chat)[0], read_options(chat, service)
    token_ids, _ = await service.link.run_beside(
        lambda: service.frontend.encode(messages, tools, options)
    )
    headers = warning_headers(chat.ignored(is_answer=False))
    return json_response({"input_tokens": len(token_ids)}, headers=headers)


_PLAIN: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/health", _health),
    ("GET", "/ping", _health),
    ("GET", "/version", _version),
    ("GET", "/metrics", _metrics),
    ("GET", "/v1/models", _models),
    ("GET", "/v1/models/{name:path}", _one_model),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("GET", "/tokenizer_info", tokens.tokenizer_info),
    ("POST", anthropic_messages.COUNT_PATH, _count_tokens),
    ("GET", f"{responses.PATH}/{{id}}", _no_response),
    ("DELETE", f"{responses.PATH}/{{id}}", _no_response),
    ("POST", f"{responses.PATH}/{{id}}/cancel", _no_response),
    ("GET", f"{responses.PATH}/{{id}}/input_items", _no_response),
)


def create_app(
    service: Service,
    *,
    api_keys: tuple[str, ...] = (),
    allowed_origins: tuple[str, ...] = (),
    has_access_log: bool = False,
) -> ASGIApp:
    """Return the application that answers for a service."""
    routes = [
        Route(path, _bind(handler, service), methods=[method]) for method, path, handler in _PLAIN
    ]
    routes += [
        Route(path, _bind(_answer_by(reader), service), methods=["POST"])
        for path, reader in _ANSWERING.items()
    ]
    app: ASGIApp = Starlette(routes=routes, exception_handlers={HTTPException: _tell_no_route})
    if api_keys:
        app = KeyGuard(app, api_keys)
    if allowed_origins:
        app = allow_origins(app, allowed_origins)
    return AccessLog(app, service.link.metrics, is_on=has_access_log)


def _answer_by(reader: Reader) -> Handler:
    async def answer(http: HttpRequest, service: Service) -> ASGIApp:
        fields = await service.read_fields(http)
        return await service.answer(http, reader(fields, service))

    return answer


def _bind(handler: Handler, service: Service) -> Callable[[HttpRequest], Awaitable[ASGIApp]]:
    async def handle(http: HttpRequest) -> ASGIApp:
        return await handle_errors(http, handler(http, service), service.without_folder)

    return handle


def _tell_no_route(http: HttpRequest, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    path = http.scope["path"]
    sentence = {
        404: f"There is no route {path!r:.100}.",
        405: f"{http.method:.10} is not a method of {path!r:.100}.",
    }.get(problem.status_code, "The request cannot be answered.")
    error = RequestError(problem.status_code, sentence)
    return json_response(error.body(path), status=error.status, headers=problem.headers)
