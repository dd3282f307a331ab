"""What generation_config.json of a checkpoint sets for requests that leave it open."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.engine.sampling_params import SamplingParams, SamplingSettings
from mindformers_glm.system.files import read_json_object

# Used where neither the request nor the checkpoint limits the length. Hugging Face's own default
# (max_length 20) cuts every answer short.
DEFAULT_MAX_NEW_TOKENS = 512

# Keys taken over as they are.
_TAKEN_KEYS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
)
# Keys that change the answer and are not supported, with the value at which they change nothing.
# Read: transformers 4.51.3 `GenerationConfig`, and top_h of version 5. Its other keys (cache, beam
# details, assistants, token ids of encoders, versions) cannot change an answer here. A key that
# transformers does not know has no effect there and none here.
_NEUTRAL_VALUES: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0,
    "dola_layers": None,
    "typical_p": 1,
    "top_h": None,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "diversity_penalty": 0,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "max_time": None,
    "bad_words_ids": [],
    "force_words_ids": [],
    "constraints": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "forced_decoder_ids": [],
    "exponential_decay_length_penalty": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "sequence_bias": {},
    "guidance_scale": 1,
    "watermarking_config": None,
    "token_healing": False,
    "generation_kwargs": {},
}

# Below it sampling is greedy: dividing float32 logits by less could overflow.
_LOWEST_TEMPERATURE = 1e-5

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class GenerationDefaults:
    """The checkpoint's own sampling settings and end-of-text tokens.

    params: what generation_config.json says; None where it is silent.
    eos_token_ids: its `eos_token_id`, one or several; empty if it has none.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    eos_token_ids: tuple[int, ...] = ()

    def has_length_limit(self, asked: SamplingParams) -> bool:
        """Whether request or checkpoint say how long an answer may get."""
        limits = (asked.max_new_tokens, asked.max_length)
        own_limits = (self.params.max_new_tokens, self.params.max_length)
        return any(limit is not None for limit in limits + own_limits)

    def resolve(self, asked: SamplingParams) -> SamplingSettings:
        """Answer what the request leaves open: the checkpoint first, then Hugging Face's defaults.

        Read: transformers 4.51.3 `GenerationConfig`: do_sample False, top_k 50, others neutral.
        A length the request gives beats both lengths of the checkpoint.
        """
        own = self.params
        temperature = _first(asked.temperature, own.temperature, 1.0)
        has_own_wish = any(
            value is not None
            for value in (asked.temperature, asked.top_k, asked.top_p, asked.min_p)
        )
        do_sample = _first(asked.do_sample, True if has_own_wish else None, own.do_sample, False)
        if asked.max_new_tokens is not None or asked.max_length is not None:
            lengths = asked.max_new_tokens, asked.max_length
        elif own.max_new_tokens is not None or own.max_length is not None:
            lengths = own.max_new_tokens, own.max_length
        else:
            lengths = DEFAULT_MAX_NEW_TOKENS, None
        return SamplingSettings(
            is_greedy=not do_sample or temperature < _LOWEST_TEMPERATURE,
            temperature=temperature,
            top_k=max(_first(asked.top_k, own.top_k, 50), 0),
            top_p=_first(asked.top_p, own.top_p, 1.0),
            min_p=_first(asked.min_p, own.min_p, 0.0),
            repetition_penalty=_first(asked.repetition_penalty, own.repetition_penalty, 1.0),
            max_new_tokens=lengths[0],
            max_length=lengths[1],
            min_new_tokens=_first(asked.min_new_tokens, own.min_new_tokens, 0),
            seed=asked.seed,
            stop=tuple(asked.stop) or tuple(own.stop),
            stop_token_ids=tuple(asked.stop_token_ids),
            ignore_eos=asked.ignore_eos,
            n=asked.n,
            presence_penalty=_first(asked.presence_penalty, own.presence_penalty, 0.0),
            frequency_penalty=_first(asked.frequency_penalty, own.frequency_penalty, 0.0),
            logit_bias=tuple(asked.logit_bias),  # type: ignore[arg-type]
            bad_words=tuple(asked.bad_words),
            logprobs=asked.logprobs,
            prompt_logprobs=asked.prompt_logprobs,
            skip_special_tokens=asked.skip_special_tokens,
            structured_outputs=asked.structured_outputs,  # type: ignore[arg-type]
            thinking_token_budget=asked.thinking_token_budget,
        )


def is_unsupported_key(name: str) -> bool:
    """Whether `refuse_unsupported` judges this key by its value."""
    return name in _NEUTRAL_VALUES


def from_generation_config(folder: str | Path) -> GenerationDefaults:
    """Read `generation_config.json` of a Hugging Face folder; without the file nothing is set.

    Raises:
        ConfigError: the file is broken or a value is out of its range.
        UnsupportedError: it asks for something that changes the answer and is not supported.
    """
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return GenerationDefaults()
    raw = read_json_object(path, ConfigError)
    refuse_unsupported(raw, path)
    taken = {key: raw[key] for key in _TAKEN_KEYS if raw.get(key) is not None}
    if "top_k" in raw and raw["top_k"] is None:
        taken["top_k"] = 0  # null switches top_k off in Hugging Face; a missing key means 50
    stop = raw.get("stop_strings") or ()
    try:
        params = SamplingParams(**taken, stop=stop)
    except ConfigError as problem:
        raise ConfigError(f"{path}: {problem}") from None
    return GenerationDefaults(params, read_eos_token_ids(raw, path))


def refuse_unsupported(raw: Mapping[str, Any], source: str | Path) -> None:
    """Refuse keys that would change the answer and cannot; at their neutral values they may be.

    Raises:
        UnsupportedError: naming the first such key, and `source` as where it stands.
    """
    for key, neutral in _NEUTRAL_VALUES.items():
        value = raw.get(key)
        if value is not None and value != neutral:
            raise UnsupportedError(
                f"{source}: {key}={value!r} is not supported: remove the key to go on without it."
            )


def read_eos_token_ids(raw: Mapping[str, Any], source: str | Path) -> tuple[int, ...]:
    """The end-of-text tokens that `eos_token_id` names: none, one or several.

    Raises:
        ConfigError: it is something else.
    """
    found = raw.get("eos_token_id")
    ids = [] if found is None else found if isinstance(found, list | tuple) else [found]
    if any(type(token_id) is not int or token_id < 0 for token_id in ids):
        raise ConfigError(
            f"{source}: eos_token_id must be a token id or a list of token ids, got {found!r}."
        )
    return tuple(ids)


def _first(*values: _Value | None) -> _Value:
    """Return the first value that is not None; the last one never is."""
    return next(value for value in values if value is not None)
