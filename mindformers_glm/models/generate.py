"""`network.generate(...)`: upstream's entry point for token ids, on this project's engine."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.generation_defaults import (
    GenerationDefaults,
    from_generation_config,
    is_unsupported_key,
    read_eos_token_ids,
    refuse_unsupported,
)
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.open_model import OpenRunner
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.models.streaming import StreamerFeed
from mindformers_glm.models.token_id_prompts import read_prompts
from mindformers_glm.tokenizer import TokenIdsOnly, open_tokenizer

# Of one answer's token ids: what tells more has no place in the result.
_PARAMS = tuple(
    field.name
    for field in fields(SamplingParams)
    if field.name not in ("n", "logprobs", "prompt_logprobs", "skip_special_tokens")
)
# Hugging Face's names for what SamplingParams calls stop_token_ids and stop.
_ALIASES = ("eos_token_id", "stop_strings")
# What upstream's text generation pipeline passes on beside the settings: it has formed the batch
# by then, and reads no pictures or sounds (mindformers 1.7.0, pipeline/pipeline.py).
_OF_THE_PIPELINE = ("batch_size", "image_processor", "audio_processor", "model_name")


def create_engine(
    opened: OpenRunner, config: GlmConfig, settings: RunnerSettings, folder: str | None
) -> LLMEngine:
    """The engine that `generate` runs on.

    Args:
        folder: the checkpoint's, whose generation_config.json and tokenizer apply; None: neither.
    """
    defaults = from_generation_config(folder) if folder else GenerationDefaults()
    return LLMEngine(
        opened.runner,
        EngineConfig.for_runner(settings, opened.num_blocks, {"seed": 0}),
        open_tokenizer(folder) if folder else TokenIdsOnly("The network"),
        eos_token_ids=(*config.eos_token_ids, *defaults.eos_token_ids),
        defaults=defaults,
        max_position_embeddings=config.max_position_embeddings,
    )


def generate(
    engine: LLMEngine,
    input_ids: Any,
    generation_config: Any = None,
    seed: int | None = None,
    attention_mask: Any = None,
    streamer: Any = None,
    pad_token_id: int | None = None,
    **kwargs: Any,
) -> list[np.ndarray]:
    """See GlmInferenceModel.generate.

    Raises:
        ConfigError: an unknown setting, or one out of its range.
        UnsupportedError: a setting that would change the answer and is not supported.
        PromptError: a prompt is empty, too long, or has ids outside the vocabulary; or the mask is
            not one of these prompts.
    """
    settings = {name: value for name, value in kwargs.items() if name not in _OF_THE_PIPELINE}
    params = _read_params(generation_config, seed, settings)
    prompts = read_prompts(input_ids, attention_mask, pad_token_id)
    _check_stop(engine, params)
    # Whoever holds the network may have changed its weights since the last call.
    engine.pool.forget_all()
    feed = StreamerFeed(streamer, prompts)
    try:
        return _run(engine, prompts, params, feed)
    finally:
        feed.end()


def _read_params(
    generation_config: Any, seed: int | None, kwargs: Mapping[str, Any]
) -> SamplingParams:
    for name in kwargs:
        if name not in _PARAMS and name not in _ALIASES and not is_unsupported_key(name):
            raise ConfigError(f"generate() does not know {name!r}: it takes {', '.join(_PARAMS)}.")
    given = _read_settings(_as_mapping(generation_config), "generation_config")
    given |= _read_settings(kwargs, "generate()")
    if seed is not None:
        given["seed"] = seed
    eos_token_ids = given.pop("eos_token_ids", ())
    params = SamplingParams(**given)
    if eos_token_ids and not params.ignore_eos:
        params = replace(params, stop_token_ids=(*params.stop_token_ids, *eos_token_ids))
    return params


def _run(
    engine: LLMEngine, prompts: list[list[int]], params: SamplingParams, feed: StreamerFeed
) -> list[np.ndarray]:
    answers: dict[str, list[int]] = {}
    request_ids = [str(index) for index in range(len(prompts))]
    try:
        for request_id, prompt in zip(request_ids, prompts, strict=True):
            engine.add_request(request_id, prompt, params)
        while engine.has_unfinished():
            for output in engine.step():
                if output.error:
                    raise ConfigError(f"prompt {output.request_id}: {output.error}")
                feed.put(output.delta_token_ids)
                if output.finished:
                    answers[output.request_id] = list(output.token_ids)
    finally:
        for request_id in request_ids:
            engine.abort(request_id)
    return [
        np.array(prompt + answers[request_id], np.int32)
        for request_id, prompt in zip(request_ids, prompts, strict=True)
    ]


def _as_mapping(generation_config: Any) -> Mapping[str, Any]:
    """The keys of a Hugging Face or MindSpore Transformers GenerationConfig, or of a dict."""
    if generation_config is None:
        return {}
    if isinstance(generation_config, Mapping):
        return generation_config
    to_dict = getattr(generation_config, "to_dict", None)
    if to_dict is None:
        raise ConfigError(
            "generation_config must be a GenerationConfig or a dict, got a "
            f"{type(generation_config).__name__}."
        )
    raw = dict(to_dict())
    # Both classes cut at 20 tokens of prompt and answer unless told otherwise; nobody means that.
    if raw.get("max_length") == type(generation_config)().max_length:
        del raw["max_length"]
    return raw


def _read_settings(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields of SamplingParams, and `eos_token_ids` where the end-of-text tokens are named."""
    refuse_unsupported(raw, source)
    settings = {name: raw[name] for name in _PARAMS if raw.get(name) is not None}
    if raw.get("stop_strings") and "stop" not in settings:
        settings["stop"] = raw["stop_strings"]
    eos_token_ids = read_eos_token_ids(raw, source)
    if eos_token_ids:
        settings["eos_token_ids"] = eos_token_ids
    return settings


def _check_stop(engine: LLMEngine, params: SamplingParams) -> None:
    if not isinstance(engine.tokenizer, TokenIdsOnly):
        return
    if engine.defaults.resolve(params).stop or params.bad_words:
        raise ConfigError(
            "stop and bad_words look for text and this network has no tokenizer: build it with "
            "from_pretrained from a folder with a tokenizer, or use stop_token_ids and logit_bias."
        )
