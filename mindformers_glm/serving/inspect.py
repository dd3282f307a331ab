"""What `mindformers-glm inspect DIR` says about a checkpoint folder, from headers alone."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from mindformers_glm.backends import BACKENDS
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.rope_scaling import RopeScaling
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.generation_defaults import GenerationDefaults, from_generation_config
from mindformers_glm.serving.inspect_memory import describe_memory, format_bytes
from mindformers_glm.system.files import read_json_if_present
from mindformers_glm.tokenizer import (
    GlmTokenizer,
    check_vocabulary,
    find_tokenizer_file,
    load_tokenizer,
)
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import (
    WeightRule,
    build_rules,
    check_rules,
    resolve_attention_bias,
)

_GENERATION_BOOKKEEPING = ("_from_model_config", "transformers_version")


def add_arguments(parser: SentenceParser) -> None:
    """Add the one argument."""
    parser.sentence = "inspect takes one checkpoint folder: mindformers-glm inspect DIR"
    parser.add_argument("folder", metavar="DIR", help="a Hugging Face folder")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of the folder and return the exit code."""
    print(inspect_checkpoint(arguments.folder))
    return 0


def inspect_checkpoint(folder: str | Path) -> str:
    """Describe a checkpoint folder and check it as loading would, without reading weights.

    A folder without a tokenizer is described all the same: token ids can be run.

    Returns:
        Aligned "name  value" lines.
    Raises:
        ConfigError, UnsupportedError, CheckpointError: what `predict` would refuse it for.
    """
    config = GlmConfig.from_hf(folder)
    with Checkpoint.open(folder) as checkpoint:
        config = resolve_attention_bias(config, checkpoint)
        rules = build_rules(config)
        check_rules(rules, checkpoint)
        defaults = from_generation_config(checkpoint.folder)
        tokenizer = None
        if find_tokenizer_file(checkpoint.folder) is not None:
            tokenizer = load_tokenizer(checkpoint.folder)
            check_vocabulary(tokenizer, config.vocab_size, checkpoint.folder)
        lines = [
            ("checkpoint", str(checkpoint.folder)),
            *_describe_architecture(config),
            *_describe_weights(config, checkpoint, rules),
            *(
                line
                for backend in BACKENDS.values()
                for line in describe_memory(backend, config, _default_settings(config, checkpoint))
            ),
            ("tensors", f"all {len(checkpoint.entries)} accounted for"),
            _describe_ends(config, defaults, tokenizer),
            _describe_generation(checkpoint.folder),
            *_describe_tokenizer(tokenizer),
        ]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines)


def _describe_architecture(config: GlmConfig) -> list[tuple[str, str]]:
    bias = "with" if config.attention_bias else "without"
    return [
        ("architecture", f"{config.architecture} (model_type {config.model_type})"),
        ("layers", str(config.num_hidden_layers)),
        ("norms", f"before {'and after ' if config.has_sandwich_norms else ''}attention and MLP"),
        ("hidden size", f"{config.hidden_size}, MLP {config.intermediate_size}"),
        (
            "attention",
            f"{config.num_attention_heads} heads, {config.num_key_value_heads} KV heads of "
            f"{config.head_dim}, {bias} q/k/v bias",
        ),
        (
            "RoPE",
            f"theta {config.rope_theta:g} on {config.rotary_dim} of {config.head_dim} columns"
            f"{_describe_scaling(config.rope_scaling)}",
        ),
        ("context", f"{config.max_position_embeddings} tokens"),
        (
            "vocabulary",
            f"{config.vocab_size}, {'tied' if config.tie_word_embeddings else 'untied'} output",
        ),
    ]


def _describe_scaling(scaling: RopeScaling | None) -> str:
    if scaling is None:
        return ""
    return (
        f", YaRN {scaling.factor:g} times {scaling.original_max_position_embeddings} tokens, "
        f"attention factor {scaling.attention_factor:.4g}"
    )


def _describe_weights(
    config: GlmConfig, checkpoint: Checkpoint, rules: Sequence[WeightRule]
) -> list[tuple[str, str]]:
    # Constants that some exporters save are no parameters.
    used = {source.name: source.shape for rule in rules for source in rule.sources}
    num_parameters = sum(math.prod(shape) for shape in used.values())
    by_dtype = ", ".join(
        f"{dtype} {format_bytes(num_bytes)}"
        for dtype, num_bytes in checkpoint.num_bytes_by_dtype.items()
    )
    settings = _default_settings(config, checkpoint)
    kv_bytes = config.kv_bytes_per_token(settings.kv_cache_dtype)
    num_files = len(checkpoint.files)
    files = f"{num_files} {checkpoint.file_format} {'file' if num_files == 1 else 'shards'}"
    kept_float = ", ".join(map(str, config.float_layers_id))
    return [
        ("parameters", f"{num_parameters:,}"),
        ("stored as", by_dtype),
        ("runs as", f"{settings.params_dtype} unless params_dtype or quantization says otherwise"),
        *([("never quantized", f"layers {kept_float}")] if kept_float else []),
        (
            "KV cache",
            f"{format_bytes(kv_bytes)} a token in {settings.kv_cache_dtype}, "
            f"{format_bytes(kv_bytes * config.max_position_embeddings)} for the whole context",
        ),
        ("files", files),
    ]


def _default_settings(config: GlmConfig, checkpoint: Checkpoint) -> RunnerSettings:
    """What a run without further settings would have."""
    return RunnerSettings.for_config(config, checkpoint.dtype)


def _describe_ends(
    config: GlmConfig, defaults: GenerationDefaults, tokenizer: GlmTokenizer | None
) -> tuple[str, str]:
    """The tokens that end an answer, whoever names them, as in `LLM`."""
    by_source = {
        "config.json": config.eos_token_ids,
        "generation_config.json": defaults.eos_token_ids,
        "tokenizer": tokenizer.eos_token_ids if tokenizer is not None else (),
    }
    token_ids = sorted({token_id for ids in by_source.values() for token_id in ids})
    sources = ", ".join(source for source, ids in by_source.items() if ids)
    found = f"token ids {token_ids} ({sources})"
    return "end of text", found if token_ids else "no token ids: answers end by their length alone"


def _describe_generation(folder: Path) -> tuple[str, str]:
    generation = read_json_if_present(folder / "generation_config.json", ConfigError)
    settings = [
        f"{key}={value}"
        for key, value in generation.items()
        if key not in _GENERATION_BOOKKEEPING and value is not None
    ]
    return "generation", ", ".join(settings) or "no generation_config.json"


def _describe_tokenizer(tokenizer: GlmTokenizer | None) -> list[tuple[str, str]]:
    if tokenizer is None:
        return [("tokenizer", "none: prompts cannot be read")]
    return [
        ("tokenizer", tokenizer.vocabulary.source),
        (
            "chat template",
            f"{tokenizer.chat_format}, for conversations; a base model: texts are taken as they are"
            if tokenizer.has_chat_template and tokenizer.is_base_model
            else tokenizer.chat_format
            if tokenizer.has_chat_template
            else "none: prompts are taken as they are",
        ),
    ]
