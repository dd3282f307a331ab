"""What `mindformers-glm inspect DIR` says about a checkpoint folder."""

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.backends import BACKENDS
from mindformers_glm.config.adapter import find_adapter
from mindformers_glm.config.environment import quantized_folder
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.config.rope_scaling import RopeScaling
from mindformers_glm.config.run_config import default_llm_arguments
from mindformers_glm.config.runner_settings import GIVEN_SETTINGS, RunnerSettings
from mindformers_glm.config.sentence_parser import SentenceParser
from mindformers_glm.core.errors import ConfigError, GlmError, PromptError
from mindformers_glm.core.stored_schemes import StoredSchemes
from mindformers_glm.engine.generation_defaults import GenerationDefaults, from_generation_config
from mindformers_glm.engine.llm_arguments import read_size
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.serving.inspect.cards import count_cards
from mindformers_glm.serving.inspect.memory import Fit, count_memory
from mindformers_glm.system.files import read_json_if_present
from mindformers_glm.system.sizes import format_bytes
from mindformers_glm.tokenizer import (
    GlmTokenizer,
    TokenIdsOnly,
    check_vocabulary,
    open_tokenizer,
)
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules, find_surplus
from mindformers_glm.weights.rules import (
    WeightRule,
    build_rules,
    find_stored_schemes,
    resolve_attention_bias,
    without_kv_scales,
)
from mindformers_glm.weights.surplus import check_repeats, describe_surplus

_SEVERAL = 2  # ranks: what is float there is float on more
_GENERATION_BOOKKEEPING = ("_from_model_config", "transformers_version")


def add_arguments(parser: SentenceParser) -> None:
    """Add the folder and the form of the report."""
    parser.sentence = "inspect takes one checkpoint folder: mindformers-glm inspect DIR [--json]"
    parser.add_argument("folder", metavar="DIR", help="a Hugging Face folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of the folder and return the exit code: 1 where `predict` would fail."""
    try:
        found = inspect_folder(arguments.folder)
    except GlmError as problem:
        if arguments.json:
            refused = {"checkpoint": arguments.folder, "can_run": False, "obstacle": str(problem)}
            print(json.dumps(refused, ensure_ascii=False))
        raise
    if arguments.json:
        print(json.dumps(found.facts, ensure_ascii=False))
    else:
        print(found.as_text())
    return int(not found.facts["can_run"])


@dataclass(frozen=True)
class Inspection:
    """What is known of a folder: as lines of a name and a value, and as values for programs."""

    lines: list[tuple[str, str]]
    facts: dict[str, Any]

    def as_text(self) -> str:
        """Aligned "name  value" lines."""
        width = max(len(name) for name, _ in self.lines) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in self.lines)


def inspect_checkpoint(folder: str | Path) -> str:
    """Describe a checkpoint folder for people; see `inspect_folder`."""
    return inspect_folder(folder).as_text()


def inspect_folder(folder: str | Path) -> Inspection:
    """Describe a checkpoint folder and check it as loading would, mostly from its headers.

    Weights are read only where one must be the same as another. A folder without a tokenizer is
    described all the same: token ids can be run.

    Raises:
        ConfigError, UnsupportedError, CheckpointError: what `predict` would refuse it for on any
            machine; what it would on this one is among the facts.
    """
    folder = locate_folder(folder)
    config = GlmConfig.from_hf(folder)
    place = quantized_folder()
    with Checkpoint.open(folder, find_format=find_format, quantized_folder=place) as checkpoint:
        config = resolve_attention_bias(config, checkpoint)
        rules = build_rules(config, quantized=checkpoint.quantized)
        check_rules(rules, checkpoint)
        check_repeats(rules, checkpoint)
        defaults = from_generation_config(checkpoint.folder)
        tokenizer = open_tokenizer(checkpoint.folder)
        check_vocabulary(tokenizer, config.vocab_size, checkpoint.folder)
        if not isinstance(tokenizer, TokenIdsOnly) and tokenizer.has_chat_template:
            with suppress(ConfigError, PromptError):  # it may want a name, or other messages
                tokenizer.encode_chat([{"role": "user", "content": "x"}])
        return _describe(config, checkpoint, rules, defaults, tokenizer)


def _describe(
    config: GlmConfig,
    checkpoint: Checkpoint,
    rules: Sequence[WeightRule],
    defaults: GenerationDefaults,
    tokenizer: GlmTokenizer,
) -> Inspection:
    arguments = default_llm_arguments()
    given = {name: arguments[name] for name in GIVEN_SETTINGS if name in arguments}
    stored = find_stored_schemes(rules, checkpoint)
    settings = RunnerSettings.for_config(config, checkpoint.dtype, stored, **given)
    fit = Fit.find(
        config, settings, arguments["device_target"], read_size(arguments["max_device_memory"])
    )
    table = count_memory(next(iter(BACKENDS.values())), config, settings)
    cards = list(count_cards(config, settings, stored))
    sections = [
        _Section([("checkpoint", str(checkpoint.folder))], {"checkpoint": str(checkpoint.folder)}),
        _Section(_describe_architecture(config), {"config": asdict(config)}),
        _describe_weights(config, checkpoint, rules, settings),
        _describe_quantization(stored),
        _Section(
            [*table.lines(), *(needed.line() for needed in cards), fit.line()],
            {"memory": asdict(table), "can_run": fit.obstacle is None}
            | asdict(fit)
            | {"cards": [asdict(needed) for needed in cards]},
        ),
        _describe_tensors(checkpoint, rules),
        _describe_ends(config, defaults, tokenizer),
        _describe_generation(checkpoint.folder),
        _describe_tokenizer(tokenizer),
    ]
    lines = [line for section in sections for line in section.lines]
    return Inspection(lines, {k: v for section in sections for k, v in section.facts.items()})


@dataclass(frozen=True)
class _Section:
    lines: list[tuple[str, str]]
    facts: dict[str, Any]


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
    config: GlmConfig,
    checkpoint: Checkpoint,
    rules: Sequence[WeightRule],
    settings: RunnerSettings,
) -> _Section:
    # Constants that some exporters save are no parameters.
    weights = without_kv_scales(rules)
    used = {source.name: source.shape for rule in weights for source in rule.sources}
    num_parameters = sum(math.prod(shape) for shape in used.values())
    by_dtype = ", ".join(
        f"{dtype} {format_bytes(num_bytes)}"
        for dtype, num_bytes in checkpoint.num_bytes_by_dtype.items()
    )
    kv_heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    kv_bytes = kv_heads * settings.kv_head_bytes(config.head_dim)
    of_checkpoint = " with the checkpoint's scales" if settings.uses_kv_scales else ""
    num_files = len(checkpoint.files)
    kept_float = ", ".join(map(str, config.float_layers_id))
    as_stored = RunnerSettings.for_config(config, checkpoint.dtype).params_dtype
    by_llm = "" if as_stored == settings.params_dtype else f", {as_stored} by LLM(DIR)"
    is_float = settings.stored_schemes is None
    unless = "params_dtype or quantization says" if is_float else "params_dtype says"
    lines = [
        ("parameters", f"{num_parameters:,}"),
        ("stored as", by_dtype),
        (
            "runs as",
            f"{'' if is_float else 'the integers that it has, else '}{settings.params_dtype} by "
            f"predict{by_llm}, unless {unless} otherwise",
        ),
        *([("never quantized", f"layers {kept_float}")] if kept_float and is_float else []),
        (
            "KV cache",
            f"{format_bytes(kv_bytes)} a token in {settings.kv_dtype}{of_checkpoint}, "
            f"{format_bytes(kv_bytes * config.max_position_embeddings)} for the whole context",
        ),
        (
            "files",
            f"{num_files} {checkpoint.file_format} {'file' if num_files == 1 else 'shards'}",
        ),
    ]
    facts = {
        "num_parameters": num_parameters,
        "num_bytes_by_dtype": checkpoint.num_bytes_by_dtype,
        "compute_dtype": settings.compute_dtype,
        "params_dtype_of_llm": as_stored,
        "files": [file.name for file in checkpoint.files],
    }
    return _Section(lines, facts)


def _describe_quantization(stored: StoredSchemes) -> _Section:
    """Tool, schemes and float layers of a checkpoint that is quantized."""
    if stored.tool is None:
        return _Section([], {"quantization": None})
    counts = [
        f"{count} {'matrix' if count == 1 else 'matrices'} {name}"
        for name, count in stored.counts.items()
    ]
    lines = [("quantized by", stored.tool), ("schemes", "; ".join(counts))]
    if stored.float_layers:
        lines.append(("float layers", ", ".join(_join_numbers(stored.float_layers))))
    if widened := stored.describe_float():
        lines.append(("widened", widened))
    widened_layers, on_ranks = stored.find_widened(), stored.find_widened(_SEVERAL)
    if on_ranks != widened_layers:
        lines.append(("widened on ranks", stored.describe_float(_SEVERAL)))
    facts = {
        "tool": stored.tool,
        "schemes": stored.counts,
        "float_layers": stored.float_layers,
        "kept_as": {name: scheme and scheme.name for name, scheme in (stored.kept or {}).items()},
        "widened_layers": widened_layers,
        "widened_layers_on_ranks": on_ranks,
    }
    return _Section(lines, {"quantization": facts})


def _join_numbers(layers: Sequence[str]) -> list[str]:
    """decoder.layers.0.mlp.linear_fc2 and the like as "mlp.linear_fc2 of layers 0 to 39"."""
    numbers: dict[str, list[int]] = {}
    others = []
    for name in layers:
        pieces = name.split(".", 3)
        if len(pieces) == 4:
            numbers.setdefault(pieces[3], []).append(int(pieces[2]))
        else:
            others.append(name)

    def describe(found: list[int]) -> str:
        if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
            return f"{found[0]} to {found[-1]}"
        return ", ".join(map(str, found))

    return [f"{name} of layers {describe(found)}" for name, found in numbers.items()] + others


def _describe_tensors(checkpoint: Checkpoint, rules: Sequence[WeightRule]) -> _Section:
    adapter = find_adapter(checkpoint.folder)
    not_used = describe_surplus(rules, checkpoint)
    accounted = f"all {len(checkpoint.entries)} accounted for"
    lines = [
        ("tensors", f"{accounted}, not used: {not_used}" if not_used else accounted),
        *([("adapter", f"{adapter}, which is not applied")] if adapter else []),
    ]
    return _Section(
        lines, {"tensors_not_used": find_surplus(rules, checkpoint), "adapter": adapter}
    )


def _describe_ends(
    config: GlmConfig, defaults: GenerationDefaults, tokenizer: GlmTokenizer
) -> _Section:
    """The tokens that end an answer, whoever names them, as in `LLM`."""
    by_source = {
        "config.json": config.eos_token_ids,
        "generation_config.json": defaults.eos_token_ids,
        "tokenizer": tokenizer.eos_token_ids,
    }
    token_ids = sorted({token_id for ids in by_source.values() for token_id in ids})
    sources = ", ".join(source for source, ids in by_source.items() if ids)
    found = f"token ids {token_ids} ({sources})"
    line = found if token_ids else "no token ids: answers end by their length alone"
    return _Section([("end of text", line)], {"eos_token_ids": token_ids})


def _describe_generation(folder: Path) -> _Section:
    raw = read_json_if_present(folder / "generation_config.json", ConfigError)
    generation = {
        key: value
        for key, value in raw.items()
        if key not in _GENERATION_BOOKKEEPING and value is not None
    }
    settings = ", ".join(f"{key}={value}" for key, value in generation.items())
    return _Section(
        [("generation", settings or "no generation_config.json")], {"generation": generation}
    )


def _describe_tokenizer(tokenizer: GlmTokenizer) -> _Section:
    if isinstance(tokenizer, TokenIdsOnly):
        line = "none: token ids run (LLM.generate, stream, logits), text is refused"
        return _Section([("tokenizer", line)], {"tokenizer": None, "chat_template": None})
    source = tokenizer.vocabulary.source
    chat_format = tokenizer.chat_format if tokenizer.has_chat_template else None
    template = chat_format or "none: prompts are taken as they are"
    if chat_format and tokenizer.is_base_model:
        template += ", for conversations; a base model: texts are taken as they are"
    lines = [
        ("tokenizer", source),
        ("chat template", template),
    ]
    return _Section(lines, {"tokenizer": source, "chat_template": chat_format})
