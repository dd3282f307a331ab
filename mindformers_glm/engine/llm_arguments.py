"""What may be given to `LLM` and its methods, checked where it comes in."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindformers_glm.config.value_types import parse_size
from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.engine.sampling_params import SamplingParams

# Twelve rows in a step take 1.1 to 1.7 times as long as one, less with AMX; guesses get that long
# only while they are right.
DEFAULT_PROMPT_LOOKUP_NUM_TOKENS = 11

Conversation = Items[Mapping[str, Any]]
# A text, token ids, or a conversation.
Prompt = str | Items[int] | Conversation
# "auto", "none", "required", or {"type": "function", "function": {"name": ...}}; None is "auto".
ToolChoice = str | Mapping[str, Any] | None


@dataclass(frozen=True)
class ToolDemand:
    """What a `tool_choice` asks for.

    may_call: the model is told of the tools and may call them.
    must_call: it must call one.
    name: the only tool that it may call; None: any.
    """

    may_call: bool = True
    must_call: bool = False
    name: str | None = None


_DEMANDS = {
    None: ToolDemand(),
    "auto": ToolDemand(),
    "none": ToolDemand(may_call=False),
    "required": ToolDemand(must_call=True),
}


def read_tool_choice(tool_choice: ToolChoice) -> ToolDemand:
    """Return what the model may and must do with tools.

    A named tool is {"type": "function", "function": {"name": ...}}, or without the inner object as
    in OpenAI's Responses API.

    Raises:
        ConfigError: it is no choice.
    """
    if isinstance(tool_choice, Mapping) and tool_choice.get("type", "function") == "function":
        function = tool_choice.get("function", tool_choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str):
            return ToolDemand(must_call=True, name=name)
    elif tool_choice is None or (isinstance(tool_choice, str) and tool_choice in _DEMANDS):
        return _DEMANDS[tool_choice]
    raise ConfigError(
        'tool_choice must be "auto", "none", "required" or {"type": "function", "function": '
        f'{{"name": ...}}}}, got {tool_choice!r:.80}.'
    )


def is_single_prompt(prompts: Prompt | Items[Prompt]) -> bool:
    """Whether it is one prompt and not a list of them; PromptError where it is neither."""
    if isinstance(prompts, str):
        return True
    if not is_list(prompts):
        raise PromptError(
            "generate() takes a text, token ids, messages, or a list of these, got a "
            f"{type(prompts).__name__}."
        )
    return len(prompts) > 0 and isinstance(prompts[0], int | np.integer | Mapping)


def is_list(value: Any) -> bool:
    """Whether it can be token ids or messages; bytes hold numbers too, but nobody means those."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Items) and not isinstance(value, str | bytes | bytearray)


def check_single_prompt(prompt: Any) -> None:
    """Refuse a list of prompts where one is wanted; what else may be wrong is found later."""
    if is_list(prompt) and len(prompt) > 0 and (isinstance(prompt[0], str) or is_list(prompt[0])):
        raise PromptError(
            f"stream() answers one prompt, got a list of {len(prompt)}: give generate() several."
        )


def check_tools(tools: Any) -> None:
    """Refuse what are no descriptions of functions; None is fine."""
    if tools is not None and not (
        is_list(tools) and all(isinstance(tool, Mapping) or callable(tool) for tool in tools)
    ):
        raise ConfigError(
            'tools must be a list of {"type": "function", "function": {...}}, one for each '
            f"function that the model may call, got {tools!r}."
        )


def spread_params(
    params: SamplingParams | Items[SamplingParams] | None, count: int
) -> Items[SamplingParams | None]:
    """One for each prompt; ConfigError where there are more or fewer."""
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Items):
        check_params(params)
    if len(params) != count:
        raise ConfigError(
            f"{len(params)} sampling_params were given for {count} prompts: give one for all "
            "prompts, or one for each."
        )
    return params


def check_params(params: Any) -> None:
    """Refuse what is no SamplingParams; None is fine."""
    if params is not None and not isinstance(params, SamplingParams):
        raise ConfigError(
            "sampling_params must be SamplingParams (for generate() also a list, one for each "
            f"prompt), got {params!r}."
        )


def read_size(size: str | int | None) -> int | None:
    """Bytes from a number or a text such as "59GB"; None stays None."""
    if size is None or (type(size) is int and size > 0):
        return size
    try:
        return parse_size(size)
    except ValueError:
        raise ConfigError(
            'max_device_memory must be a size such as "59GB" or "512MB", or a number of bytes, '
            f"got {size!r}."
        ) from None


def read_draft_len(given: int | None) -> int:
    """How many tokens to guess ahead; None: the default."""
    if given is None:
        return DEFAULT_PROMPT_LOOKUP_NUM_TOKENS
    check_count("prompt_lookup_num_tokens", given)
    return given


def check_count(name: str, given: Any) -> None:
    """Refuse what is no whole number of at least 0."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ConfigError(f"{name} must be a whole number of at least 0, got {given!r}.")


def check_types(seed: Any, apply_chat_template: Any, enable_prefix_caching: Any) -> None:
    """Refuse values of the wrong type before anything is opened."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed must be a whole number of at least 0, got {seed!r}.")
    if not isinstance(apply_chat_template, bool) and apply_chat_template != "auto":
        raise ConfigError(
            f'apply_chat_template must be True, False or "auto", got {apply_chat_template!r}.'
        )
    if not isinstance(enable_prefix_caching, bool):
        raise ConfigError(
            f"enable_prefix_caching must be True or False, got {enable_prefix_caching!r}."
        )
