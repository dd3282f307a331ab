"""How the next token is chosen and when a request ends, as the caller asks for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

from mindformers_glm.core.errors import ConfigError, PromptError
from mindformers_glm.engine.argument_names import (
    OTHER_NAMES_OF_SAMPLING_PARAMS,
    refuse_unknown_arguments,
)
from mindformers_glm.engine.structured_outputs import (
    StructuredOutputsParams,
    read_structured_outputs,
)

_MAX_SAMPLES = 16_384  # as vLLM
_MAX_BIAS = 100.0  # as OpenAI and vLLM: what is beyond counts as this much


@refuse_unknown_arguments(OTHER_NAMES_OF_SAMPLING_PARAMS)
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
        n: how many answers to draw for the prompt; more than 1 needs sampling. The first is the one
            that n=1 draws.
        presence_penalty: subtracted from the logits of the tokens of the answer so far.
        frequency_penalty: the same as often as the token occurs in it.
        logit_bias: added to the logits of these token ids, cut to -100 .. 100.
        bad_words: texts that the answer does not hold, neither as written nor behind a blank, as
            far as it spells them in the tokens that the tokenizer makes of them (as in vLLM).
        logprobs: tell the log-probability of each token of the answer and of so many likeliest
            ones; -1: of all. They are the network's own, before any of these settings.
        prompt_logprobs: the same for the tokens of the prompt; all of it is computed then.
        structured_outputs: the form that the answer must have, a JSON schema, say; or an object
            with the same names.
        thinking_token_budget: most tokens of thoughts; the tag that ends them is written then, and
            the answer begins. Only for models whose thoughts are known (reasoning_parser).
        skip_special_tokens: False: the text shows special tokens by their names, and a stop text
            may be one; not the one that ended the answer.
        max_tokens, min_tokens: vLLM's names of max_new_tokens and min_new_tokens.
    Raises:
        ConfigError: a value is of the wrong type or out of its range, or there is no such setting.
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
    n: int = 1
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    bad_words: str | Sequence[str] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    thinking_token_budget: int | None = None
    max_tokens: InitVar[int | None] = None
    min_tokens: InitVar[int | None] = None

    def __post_init__(self, max_tokens: int | None, min_tokens: int | None) -> None:
        self._take("max_new_tokens", "max_tokens", max_tokens, low=1)
        self._take("min_new_tokens", "min_tokens", min_tokens, low=0)
        for name in ("stop", "bad_words"):
            texts = getattr(self, name)
            self._set(name, _read_texts(name, (texts,) if isinstance(texts, str) else texts))
        self._set("stop_token_ids", _read_token_ids("stop_token_ids", self.stop_token_ids))
        self._set("logit_bias", _read_bias(self.logit_bias))
        self._set("structured_outputs", read_structured_outputs(self.structured_outputs))
        _check_bool("do_sample", self.do_sample)
        _check_bool("ignore_eos", self.ignore_eos)
        _check_bool("skip_special_tokens", self.skip_special_tokens)
        _check_number("temperature", self.temperature, low=0.0)
        _check_int("top_k", self.top_k, low=-1)
        _check_number("top_p", self.top_p, low=0.0, high=1.0)
        _check_number("min_p", self.min_p, low=0.0, high=1.0)
        _check_number("repetition_penalty", self.repetition_penalty, low=0.0)
        if self.repetition_penalty == 0.0:
            raise ConfigError("repetition_penalty must be above 0, got 0: 1.0 changes nothing.")
        _check_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        _check_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        _check_int("max_new_tokens", self.max_new_tokens, low=1)
        _check_int("max_length", self.max_length, low=1)
        _check_int("min_new_tokens", self.min_new_tokens, low=0)
        _check_int("seed", self.seed, low=0)
        _check_int("logprobs", self.logprobs, low=-1)
        _check_int("prompt_logprobs", self.prompt_logprobs, low=-1)
        _check_int("thinking_token_budget", self.thinking_token_budget, low=0)
        _check_int("n", self.n, low=1)
        if self.n is None or self.n > _MAX_SAMPLES:
            raise ConfigError(f"n must be a whole number from 1 to {_MAX_SAMPLES}, got {self.n}.")
        most, least = self.max_new_tokens, self.min_new_tokens
        if most is not None and least is not None and least > most:
            raise ConfigError(f"min_new_tokens={least} is more than max_new_tokens={most}.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _take(self, name: str, other_name: str, value: int | None, *, low: int) -> None:
        """Take over what was given by vLLM's name."""
        if value is None:
            return
        own = getattr(self, name)
        if own not in (None, value):
            raise ConfigError(f"{other_name}={value!r} and {name}={own!r} are the same setting.")
        _check_int(other_name, value, low=low)
        self._set(name, value)


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
    n: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    bad_words: tuple[str, ...]
    logprobs: int | None
    prompt_logprobs: int | None
    skip_special_tokens: bool
    structured_outputs: StructuredOutputsParams | None = None
    thinking_token_budget: int | None = None


def check_settings(settings: SamplingSettings, vocab_size: int) -> None:
    """Refuse what cannot be seen before the checkpoint is known.

    Raises:
        PromptError: a bias is for no token, or all answers would be the same.
    """
    unknown = [token_id for token_id, _ in settings.logit_bias if token_id >= vocab_size]
    if unknown:
        raise PromptError(
            f"logit_bias has the token id {unknown[0]}, which is outside the vocabulary "
            f"0..{vocab_size - 1}."
        )
    if settings.n > 1 and settings.is_greedy:
        raise PromptError(
            f"n={settings.n} greedy answers would all be the same: set do_sample=True or a "
            "temperature above 0, or n=1."
        )


def _as_tuple(name: str, values: Sequence[object] | None) -> tuple[object, ...]:
    if values is None:
        return ()
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{name} must be a list, got {values!r}.")
    return tuple(values)


def _read_texts(name: str, values: Any) -> tuple[object, ...]:
    texts = _as_tuple(name, values)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ConfigError(f"{name} must hold non-empty texts, got {text!r}.")
    return texts


def _read_token_ids(name: str, values: Any) -> tuple[int, ...]:
    token_ids: list[int] = []
    for value in _as_tuple(name, values):
        if not _is_token_id(value):
            raise ConfigError(f"{name} must hold token ids, got {value!r}.")
        token_ids.append(int(value))
    return tuple(token_ids)


def _is_token_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _read_bias(given: Any) -> tuple[tuple[int, float], ...]:
    """Return pairs of a token id and its bias; JSON's ids are texts."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    read: dict[int, float] = {}
    token_id: Any
    for pair in _as_tuple("logit_bias", pairs):
        token_id, bias = pair if isinstance(pair, tuple) and len(pair) == 2 else (pair, None)
        if isinstance(token_id, str) and token_id.isascii() and token_id.isdigit():
            token_id = int(token_id)
        number = _as_float(bias)
        if not _is_token_id(token_id) or math.isnan(number):
            raise ConfigError(f"logit_bias must map token ids to numbers, got {pair!r}.")
        read[int(token_id)] = min(max(number, -_MAX_BIAS), _MAX_BIAS)
    return tuple(read.items())


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
    number = _as_float(value)
    if not math.isfinite(number) or not low <= number <= high:
        limits = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name} must be a number {limits}, got {value!r}.")


def _as_float(value: Any) -> float:
    """NaN for what is no number, or a larger one than there is."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
