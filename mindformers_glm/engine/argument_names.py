"""Keyword arguments that do not exist: one sentence says what exists instead."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from mindformers_glm.core.errors import ConfigError

_Owner = TypeVar("_Owner")
_NEAR = 0.75  # of difflib; a suggestion that is further away only confuses
_NO_CODE = "it is not needed, since code of a model folder is never run"
_ALWAYS = "it is not needed, since it is always so"
_NOT_OFFERED = "this version does not offer it"

# Names that users of vLLM, Hugging Face and OpenAI's API know -> ours, or why there is none.
OTHER_NAMES_OF_LLM = {
    "model": "pretrained_model_dir",
    "model_path": "pretrained_model_dir",
    "pretrained_model_name_or_path": "pretrained_model_dir",
    "tokenizer": "the tokenizer is read from pretrained_model_dir",
    "dtype": "params_dtype",
    "torch_dtype": "params_dtype",
    "tensor_parallel_size": "model_parallel",
    "tp_size": "model_parallel",
    "gpu_memory_utilization": "max_device_memory",
    "device": "device_target",
    "device_map": "device_target",
    "max_seq_len": "max_model_len",
    "cache_dtype": "kv_cache_dtype",
    "max_batch_size": "max_num_seqs",
    "load_in_4bit": "quantization",
    "load_in_8bit": "quantization",
    "speculative_config": "prompt_lookup_num_tokens",
    "num_speculative_tokens": "prompt_lookup_num_tokens",
    "trust_remote_code": _NO_CODE,
    "enforce_eager": _ALWAYS,
    "enable_chunked_prefill": _ALWAYS,
}
OTHER_NAMES_OF_METHODS = {
    "prompt_token_ids": "prompts may be token ids",
    "use_tqdm": "a bar is shown on a terminal only",
    "lora_request": _NOT_OFFERED,
}
OTHER_NAMES_OF_SAMPLING_PARAMS = {
    "max_completion_tokens": "max_tokens",
    "num_return_sequences": "n",
    "top_logprobs": "logprobs",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "eos_token_id": "stop_token_ids",
    "stop_words": "stop",
    "length_penalty": _NOT_OFFERED,
    "use_beam_search": _NOT_OFFERED,
    "best_of": _NOT_OFFERED,
    "guided_decoding": "structured_outputs",
    "guided_json": "it is structured_outputs={'json': ...}",
    "response_format": "it is structured_outputs={'json': ...}",
    "thinking_budget": "thinking_token_budget",
    "reasoning_budget": "thinking_token_budget",
    "budget_tokens": "thinking_token_budget",
    "logits_processors": _NOT_OFFERED,
    "allowed_token_ids": _NOT_OFFERED,
    "include_stop_str_in_output": _NOT_OFFERED,
    "truncate_prompt_tokens": _NOT_OFFERED,
}


def refuse_unknown_arguments(
    other_names: Mapping[str, str], methods: Mapping[str, Mapping[str, str]] | None = None
) -> Callable[[type[_Owner]], type[_Owner]]:
    """Let a class refuse keyword arguments that it does not have with a ConfigError.

    Args:
        other_names: what they are called here, or a clause that says why there are none.
        methods: the same for methods of the class, by their names.
    """

    def decorate(owner: type[_Owner]) -> type[_Owner]:
        for method, names in {"__init__": other_names, **(methods or {})}.items():
            label = owner.__name__ if method == "__init__" else f"{owner.__name__}.{method}"
            setattr(owner, method, _guard(getattr(owner, method), label, names))
        return owner

    return decorate


def _guard(call: Callable[..., Any], label: str, names: Mapping[str, str]) -> Callable[..., Any]:
    known = [name for name in inspect.signature(call).parameters if name != "self"]

    @wraps(call)
    def refuse_or_call(*args: Any, **given: Any) -> Any:
        for name in given:
            if name not in known:
                advice = _advise(name, known, names)
                raise ConfigError(f"{label} has no argument {name!r}: {advice}.")
        return call(*args, **given)

    return refuse_or_call


def _advise(name: str, known: list[str], other_names: Mapping[str, str]) -> str:
    other = other_names.get(name)
    if other is not None:
        return f"it is called {other} here" if other in known else other
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=_NEAR)
    return f"perhaps {near[0]} is meant" if near else f"it takes {', '.join(known)}"
