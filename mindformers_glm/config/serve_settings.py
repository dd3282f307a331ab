"""What `mindformers-glm serve` alone is told: the YAML block `serve`, and options by short names.

The rest it shares with `predict`: the checkpoint, precision, memory, device, and the sampling
settings, which are what a request leaves open.
"""

from typing import Any

from mindformers_glm.config.setting import SERVER_BLOCK, Setting
from mindformers_glm.config.value_types import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    SIZE,
    TEXT,
    TEXTS,
    ValueType,
)

# vLLM's and vastgenx's spellings of settings -> ours, on the command line of `serve`.
OTHER_NAMES = {
    "model": "pretrained_model_dir",
    "block_size": "model.model_config.block_size",
    "tensor_parallel_size": "parallel_config.model_parallel",
    "max_device_memory": "context.max_device_memory",
    "batch_size": "serve.max_num_seqs",
}
# vLLM's --dtype is one type of weights and products, with names of its own; auto sets neither.
DTYPE_SETTINGS = ("model.model_config.params_dtype", "model.model_config.compute_dtype")
DTYPE_NAMES = {"half": "float16", "float": "float32"}
# Switches of vLLM -> (our setting, its value).
SWITCHES = {
    "no_enable_prefix_caching": ("enable_prefix_caching", "False"),
    "disable_uvicorn_access_log": ("serve.access_log", "False"),
    "disable_log_requests": ("serve.access_log", "True"),  # ours never holds a prompt
}
_ALWAYS = "it is always so"
# Options of vLLM that change nothing here, and why.
WITHOUT_EFFECT = {
    "enable_auto_tool_choice": _ALWAYS,
    "enable_chunked_prefill": _ALWAYS,
    "enforce_eager": _ALWAYS,
    "disable_log_stats": "statistics are at /metrics only",
    "gpu_memory_utilization": "max_device_memory caps the memory",
    "swap_space": "requests that lose their KV cache are computed again",
    "llm_devices": "num_threads, device_id and model_parallel choose the processors",
    "uvicorn_log_level": "verbose shows more",
}


def _server(
    name: str,
    kind: ValueType,
    default: Any,
    help_text: str,
    *,
    unset: str = "",
    least: float | None = None,
    is_for_llm: bool = False,
) -> Setting:
    """A key of the block, whose option needs no block in front."""
    return Setting(
        f"{SERVER_BLOCK}.{name}",
        kind,
        default,
        help_text,
        "server LLM" if is_for_llm else "server",
        unset=unset,
        minimum=least,
        options=(name,),
        commands=("serve",),
    )


SERVER = (
    _server("host", TEXT, "127.0.0.1", "address to listen on; 0.0.0.0: all of this machine"),
    _server("port", INTEGER, 8000, "port to listen on; 0: one that is free", least=0),
    _server(
        "served_model_name",
        TEXTS,
        (),
        "names that a request may call the model by, the first one in answers",
        unset="the folder's name, and the folder as given",
    ),
    _server("any_model_name", BOOLEAN, False, "take requests for a model of any name"),
    _server(
        "api_key",
        TEXTS,
        (),
        "keys of which every request but /health must bring one; others on this machine can read "
        "the command line, so better api_key_file or the variable MINDFORMERS_GLM_API_KEY",
        unset="none",
    ),
    _server("api_key_file", TEXT, None, "a file of such keys, one a line"),
    _server(
        "allowed_origins",
        TEXTS,
        (),
        "web pages that may call the server from a browser (CORS), or *",
        unset="none",
    ),
    _server("ssl_certfile", TEXT, None, "certificate (PEM): the server speaks https"),
    _server("ssl_keyfile", TEXT, None, "its private key (PEM)", unset="in ssl_certfile"),
    _server("access_log", BOOLEAN, True, "a line for each request; prompts are never in it"),
    _server(
        "max_num_seqs",
        INTEGER,
        None,
        "answers that are computed together",
        unset="32",
        least=1,
        is_for_llm=True,
    ),
    _server(
        "max_num_batched_tokens",
        INTEGER,
        None,
        "most tokens of a step; longer prompts are split",
        unset="512",
        least=1,
        is_for_llm=True,
    ),
    _server(
        "prefill_tokens_beside_decode",
        INTEGER,
        256,
        "most tokens of prompts in a step that goes on with answers of others; 0: no limit",
        least=0,
        is_for_llm=True,
    ),
    _server(
        "tool_call_parser",
        TEXT,
        "auto",
        "what finds tool calls in answers (docs/chat.md)",
        is_for_llm=True,
    ),
    _server(
        "reasoning_parser",
        TEXT,
        "auto",
        "what tells thoughts from answers",
        is_for_llm=True,
    ),
    _server(
        "max_queued_requests",
        INTEGER,
        256,
        "answers that may wait besides those that are computed; more get status 429",
        least=0,
    ),
    _server(
        "request_timeout_s", NUMBER, 3600.0, "longest time of a request, in seconds", least=0.001
    ),
    _server(
        "client_timeout_s",
        NUMBER,
        60.0,
        "longest time in which a client sends its request or reads nothing of the answer",
        least=0.001,
    ),
    _server(
        "keep_alive_s",
        NUMBER,
        15.0,
        "a stream that has nothing to say sends a comment as often, in seconds",
        least=0.001,
    ),
    _server(
        "drain_timeout_s",
        NUMBER,
        120.0,
        "after SIGTERM, how long answers under way may take to their end, in seconds",
        least=0,
    ),
    _server("max_body_size", SIZE, 8 * 2**20, "largest body of a request", unset="8MB"),
)
