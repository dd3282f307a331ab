"""How the next token is chosen and when a request ends, as the caller asks for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from mindformers_glm.core.errors import ConfigError


@dataclass(frozen=True)
class SamplingParams:
    """The caller's wishes for one request; None means "as the checkpoint says".

    What is left None comes from the checkpoint's generation_config.json and, where that is silent,
    from Hugging Face's defaults (see `GenerationDefaults.resolve`).

    Args:
        do_sample: draw from the distribution (True) or take the best token (False). Left None,
            giving any of temperature, top_k, top_p, min_p turns sampling on: whoever sets one
            wants it to have an effect.
        temperature: divides the logits; 0 is greedy whatever `do_sample` says.
        top_k: keep the k best tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of best tokens whose probabilities reach this sum.
        min_p: keep tokens at least this fraction as probable as the best one.
        repetition_penalty: divides positive and multiplies negative logits of the tokens of the
            prompt and of the answer so far.
        max_new_tokens: most tokens to generate; beats `max_length`.
        max_length: most tokens of prompt and answer together.
        min_new_tokens: no token ends the answer before it has this many.
        seed: makes this request's draws its own; else they follow from the engine's seed.
        stop: texts that end the answer; the answer is cut before them.
        stop_token_ids: tokens that end the answer, besides the checkpoint's end-of-text tokens.
        ignore_eos: do not end at the checkpoint's end-of-text tokens.
    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _as_tuple("stop", stop))
        object.__setattr__(self, "stop_token_ids", _as_tuple("stop_token_ids", self.stop_token_ids))
        _check_bool("do_sample", self.do_sample)
        _check_bool("ignore_eos", self.ignore_eos)
        _check_number("temperature", self.temperature, low=0.0)
        _check_int("top_k", self.top_k, low=-1)
        _check_number("top_p", self.top_p, low=0.0, high=1.0)
        _check_number("min_p", self.min_p, low=0.0, high=1.0)
        _check_number("repetition_penalty", self.repetition_penalty, low=0.0)
        if self.repetition_penalty == 0.0:
            raise ConfigError("repetition_penalty must be above 0, got 0: 1.0 changes nothing.")
        _check_int("max_new_tokens", self.max_new_tokens, low=1)
        _check_int("max_length", self.max_length, low=1)
        _check_int("min_new_tokens", self.min_new_tokens, low=0)
        _check_int("seed", self.seed, low=0)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ConfigError(f"stop must hold non-empty texts, got {text!r}.")
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, low=0)
        most, least = self.max_new_tokens, self.min_new_tokens
        if most is not None and least is not None and least > most:
            raise ConfigError(f"min_new_tokens={least} is more than max_new_tokens={most}.")


@dataclass(frozen=True)
class SamplingSettings:
    """`SamplingParams` with every question answered; what the engine works with.

    is_greedy: take the best token; temperature, top_k, top_p and min_p are then without effect.
    top_k: 0 keeps all tokens.
    max_new_tokens, max_length: at least one is given.
    """

    is_greedy: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int
    seed: int | None
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool


def _as_tuple(name: str, values: Sequence[object]) -> tuple[object, ...]:
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{name} must be a list, got {values!r}.")
    return tuple(values)


def _check_bool(name: str, value: bool | None) -> None:
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}.")


def _check_int(name: str, value: int | None, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ConfigError(f"{name} must be a whole number of at least {low}, got {value!r}.")


def _check_number(name: str, value: float | None, low: float, high: float = math.inf) -> None:
    if value is None:
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        limits = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name} must be a number {limits}, got {value!r}.")
