"""What a conversation's request says besides sampling: tools, thinking, structured answers."""

from collections.abc import Sequence
from typing import Any

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.llm_arguments import ToolChoice
from mindformers_glm.engine.structured_outputs import (
    STRUCTURED_OUTPUT_FIELDS,
    structured_outputs_of,
)
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.fields import Fields
from mindformers_glm.serving.server.service import Service
from mindformers_glm.tokenizer.chat import ChatOptions

_NO_FILES = "a request may not bring a template: start the server with --chat_template"
# Field -> (values at which it asks for nothing, what to do instead).
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "chat_template": ((), _NO_FILES),
    "documents": (([],), "put them into a message"),
    "functions": (([],), "use tools"),
    "function_call": (("none", "auto"), "use tool_choice"),
    "modalities": ((["text"],), "the model writes text"),
    "audio": ((), "the model writes text"),
    "web_search_options": ((), "offer a tool"),
    "reasoning_effort": (("none",), "use enable_thinking where the model's template reads it"),
    "verbosity": (("medium",), "say it in a message"),
    "mm_processor_kwargs": ((), "the model reads text"),
    "echo": ((False,), "use /v1/completions"),
}
_UNSUPPORTED_FORMS: dict[str, tuple[tuple[Any, ...], str]] = {
    "guided_whitespace_pattern": ((), "use structured_outputs with disable_any_whitespace"),
}


def read_options(fields: Fields, service: Service) -> ChatOptions:
    """Read how the conversation is written.

    Raises:
        RequestError: a value is wrong, or a template is given.
    """
    fields.refuse(UNSUPPORTED)
    kwargs = dict(fields.take("chat_template_kwargs", dict, {}))
    enable_thinking = fields.take("enable_thinking", bool)
    # A model that does not think need not be told to leave it.
    if enable_thinking or (enable_thinking is not None and service.can_think):
        kwargs.setdefault("enable_thinking", enable_thinking)
    try:
        return ChatOptions.given(
            None,
            kwargs,
            fields.take("add_generation_prompt", bool),
            fields.take("continue_final_message", bool),
        )
    except ConfigError as problem:
        raise RequestError(400, str(problem), param="chat_template_kwargs") from None


def read_tools(fields: Fields) -> tuple[Sequence[Any] | None, ToolChoice, bool]:
    """Read the tools: their descriptions, which may be called, and whether one call ends all.

    Raises:
        RequestError: they are of another form, or a choice is made among none.
    """
    tools = fields.take("tools", list)
    choice: ToolChoice = fields.raw("tool_choice", "auto")
    if not isinstance(choice, str | dict):
        raise fields.wrong("tool_choice", "a text or an object", choice)
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise fields.wrong("tool_choice", '"none", "auto", "required" or a function', choice)
    if not tools and choice not in ("none", "auto"):
        raise RequestError(400, "tool_choice needs tools: give some.", param="tool_choice")
    is_parallel = fields.take("parallel_tool_calls", bool, True)
    return tools or None, choice, not is_parallel


def read_structure(fields: Fields) -> dict[str, Any]:
    """Read what form the answer must have, as fields of SamplingParams.

    What the form cannot be is found further on, where it is compiled.

    Raises:
        RequestError: a field is wrong, or two of them give a form.
    """
    fields.refuse(_UNSUPPORTED_FORMS)
    given = {name: fields.raw(name) for name in STRUCTURED_OUTPUT_FIELDS}
    try:
        form = structured_outputs_of(given)
    except ConfigError as problem:
        named = [name for name, value in given.items() if value is not None]
        raise RequestError(400, str(problem), param=named[0]) from None
    return {} if form is None else {"structured_outputs": form}
