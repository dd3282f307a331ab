"""From the sampling fields of a request to SamplingParams, which checks their values."""

from collections.abc import Mapping
from typing import Any

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.fields import Fields

# Fields that mean the same in SamplingParams.
_SAME = (
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "n", "stop", "stop_token_ids"),
    *("ignore_eos", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    *("bad_words", "skip_special_tokens", "min_tokens"),
)
# vLLM's name, and that of Qwen's service.
_BUDGETS = ("thinking_token_budget", "thinking_budget")
_WISHES = ("temperature", "top_k", "top_p", "min_p")
_MAX_N = 128  # as OpenAI
# Of stop and bad_words: each is looked for in each step.
_MAX_TEXTS, _MAX_TEXT_CHARACTERS = 64, 1000
MAX_LOGPROBS = 20  # as OpenAI and vLLM

# Field -> (values at which it asks for nothing, what to do instead).
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "use n"),
    "use_beam_search": ((False,), "leave it out"),
    "length_penalty": ((1, 1.0), "leave it out"),
    "early_stopping": ((False,), "leave it out"),
    "allowed_token_ids": ((), "use logit_bias"),
    "include_stop_str_in_output": ((False,), "leave it out"),
    "truncate_prompt_tokens": ((), "shorten the prompt"),
    "logits_processors": ((), "leave it out"),
    "lora_request": ((), "leave it out"),
}


def read_sampling(
    fields: Fields,
    defaults: Mapping[str, Any],
    *,
    length_fields: tuple[str, ...] = ("max_tokens", "max_completion_tokens"),
    extra: Mapping[str, Any] | None = None,
) -> SamplingParams:
    """Read how the tokens are chosen.

    Args:
        defaults: what the server was started with, fields of SamplingParams.
        length_fields: the names that the longest answer may have.
        extra: fields of SamplingParams that the route has read already.
    Raises:
        RequestError: a value is wrong, or asks for what this server does not do.
    """
    fields.refuse(UNSUPPORTED)
    asked = {name: value for name in _SAME if (value := fields.raw(name)) is not None}
    seed = fields.take("seed", int)
    if seed is not None:
        asked["seed"] = seed % 2**64  # OpenAI's may be negative
    budget = _read_length(fields, _BUDGETS, low=0)
    if budget is not None:
        asked["thinking_token_budget"] = budget
    length = _read_length(fields, length_fields)
    if length is not None:
        asked["max_new_tokens"] = length
    asked |= extra or {}
    _check_bounds(asked)
    given = {name: value for name, value in defaults.items() if value not in (None, ())}
    if any(name in asked for name in _WISHES):
        given.pop("do_sample", None)  # whoever sets one wants it to have an effect
    if "max_new_tokens" in asked:
        given.pop("max_length", None)
    if "min_tokens" in asked:
        given.pop("min_new_tokens", None)
    try:
        return SamplingParams(**(given | asked))
    except ConfigError as problem:
        name = str(problem).split()[0].partition("=")[0]
        raise RequestError(400, str(problem), param=name if name in asked else None) from None


def read_logprobs_count(fields: Fields, name: str) -> int | None:
    """How many likeliest tokens are to be told; None where nothing is said."""
    count: int | None = fields.take(name, int)
    if count is not None and not 0 <= count <= MAX_LOGPROBS:
        raise fields.wrong(name, f"a whole number from 0 to {MAX_LOGPROBS}", count)
    return count


def _read_length(fields: Fields, names: tuple[str, ...], low: int = 1) -> int | None:
    given = {name: value for name in names if (value := fields.take(name, int)) is not None}
    for name, value in given.items():
        if value < low:
            raise fields.wrong(name, f"a whole number of at least {low}", value)
    if len(set(given.values())) > 1:
        raise RequestError(400, f"{' and '.join(given)} are the same setting: give one of them.")
    return next(iter(given.values()), None)


def _check_bounds(asked: Mapping[str, Any]) -> None:
    n = asked.get("n")
    if isinstance(n, int) and n > _MAX_N:
        raise RequestError(400, f"n must be at most {_MAX_N}, got {n}.", param="n")
    for name in ("stop", "bad_words"):
        texts = asked.get(name)
        texts = [texts] if isinstance(texts, str) else texts
        if isinstance(texts, list) and (
            len(texts) > _MAX_TEXTS
            or any(isinstance(text, str) and len(text) > _MAX_TEXT_CHARACTERS for text in texts)
        ):
            raise RequestError(
                400,
                f"{name} may have {_MAX_TEXTS} texts of {_MAX_TEXT_CHARACTERS} characters.",
                param=name,
            )
