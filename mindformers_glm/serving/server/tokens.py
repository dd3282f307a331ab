"""/tokenize, /detokenize and /tokenizer_info, in vLLM's form."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mindformers_glm.serving.server.chat_completions import read_messages_field
from mindformers_glm.serving.server.chat_fields import read_options, read_tools
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.service import Service, json_response, warning_headers


async def tokenize(http: HttpRequest, service: Service) -> Response:
    """The token ids of a text or of a conversation."""
    fields = await service.read_fields(http)
    service.read_model(fields)
    prompt = fields.take("prompt", str)
    has_specials = fields.take("add_special_tokens", bool, True)
    if prompt is not None:
        encode = service.tokenizer.encode
        token_ids = await service.link.run_beside(lambda: encode(prompt))
        if not has_specials:  # those put before a text; the ones written in it stay
            token_ids = token_ids[len(encode("")) :]
    else:
        messages, options = read_messages_field(fields), read_options(fields, service)
        tools = read_tools(fields)[0]
        token_ids, _ = await service.link.run_beside(
            lambda: service.frontend.encode(messages, tools, options)
        )
    has_strings = fields.take("return_token_strs", bool, False)
    names = [service.tokenizer.decode_token(i) for i in token_ids] if has_strings else None
    body = {
        "count": len(token_ids),
        "max_model_len": service.max_model_len,
        "tokens": token_ids,
        "token_strs": names,
    }
    return json_response(body, headers=warning_headers(fields.ignored()))


async def detokenize(http: HttpRequest, service: Service) -> Response:
    """The text of token ids."""
    fields = await service.read_fields(http)
    service.read_model(fields)
    token_ids = fields.take("tokens", list)
    if token_ids is None:
        raise fields.wrong("tokens", "a list of token ids", None)
    limit = service.tokenizer.num_token_ids
    for token_id in token_ids:
        if type(token_id) is not int or not 0 <= token_id < limit:
            raise RequestError(
                400, f"tokens must hold token ids from 0 to {limit - 1}, got {token_id!r:.80}."
            )
    detokenizer = service.tokenizer.new_detokenizer(skip_special_tokens=False)
    text = await service.link.run_beside(
        lambda: "".join(map(detokenizer.feed, token_ids)) + detokenizer.flush()
    )
    return json_response({"prompt": text}, headers=warning_headers(fields.ignored()))


async def tokenizer_info(http: HttpRequest, service: Service) -> Response:
    """What a client needs to write prompts itself."""
    tokenizer = service.tokenizer
    names: Mapping[int, str] = tokenizer.special_token_names
    eos = next((names[i] for i in tokenizer.eos_token_ids if i in names), None)
    body: dict[str, Any] = {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.num_token_ids,
        "model_max_length": service.max_model_len,
        "chat_format": tokenizer.chat_format,
        "chat_template": tokenizer.chat_template_text or None,
        "bos_token": None,
        "eos_token": eos,
        "pad_token": eos,
        "special_tokens": {name: token_id for token_id, name in names.items()},
    }
    return json_response(body)
