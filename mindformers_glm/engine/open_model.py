"""From a checkpoint folder to a runner with its KV cache: checks first, then the long work."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.backends import Backend, ModelRunner, select_backend
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.model_names import locate_folder
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.agreement import check_model_is_shared
from mindformers_glm.engine.generation_defaults import GenerationDefaults, from_generation_config
from mindformers_glm.engine.memory_plan import check_memory_before_loading, plan_kv_blocks_of
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.system.log import note
from mindformers_glm.tokenizer import GlmTokenizer, check_vocabulary, open_tokenizer
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCacheSettings
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import (
    build_rules,
    find_stored_schemes,
    resolve_attention_bias,
)


@dataclass(frozen=True)
class OpenRunner:
    """A runner with its KV cache.

    num_blocks: blocks of the KV cache, the same on every rank.
    group: the ranks that have opened it together.
    """

    runner: ModelRunner
    num_blocks: int
    group: ProcessGroup


@dataclass(frozen=True)
class OpenModel(OpenRunner):
    """What an engine needs of a checkpoint folder."""

    config: GlmConfig
    settings: RunnerSettings
    tokenizer: GlmTokenizer
    defaults: GenerationDefaults
    reply_parsers: tuple[str, str]


def open_model(
    folder: str | Path,
    tensor_parallel: TensorParallel,
    given: Mapping[str, Any],
    engine_settings: Mapping[str, Any],
    *,
    device_target: str | None,
    device: DeviceSettings,
    num_threads: int | None,
    cache_settings: PackedCacheSettings,
    chat_template: str | None,
    quantized_folder: Path | None = None,
) -> OpenModel:
    """Check a Hugging Face folder, load its weights and allocate the KV cache.

    Args:
        given: fields of RunnerSettings; None stands for the default.
        engine_settings: what else answers depend on; all ranks must have the same.
        device_target, num_threads, chat_template: as `LLM` takes them.
        quantized_folder: where quantized weights are, if not in `folder`.
    Raises:
        GlmError: the folder, a setting, or the memory does not allow it.
        ConfigError: the ranks opened different checkpoints, or with different settings.
    """
    folder = locate_folder(folder)
    config = GlmConfig.from_hf(folder)
    with Checkpoint.open(folder, tensor_parallel, find_format, quantized_folder) as checkpoint:
        config = resolve_attention_bias(config, checkpoint)
        cuts = checkpoint.cuts(config, tensor_parallel)
        rules = build_rules(config, cuts, checkpoint.quantized)
        check_rules(rules, checkpoint)
        stored = find_stored_schemes(rules, checkpoint)
        settings = RunnerSettings.for_config(
            config,
            checkpoint.dtype,
            stored,
            model_parallel=tensor_parallel.size,
            model_parallel_rank=tensor_parallel.rank,
            **given,
        )
        if widened := stored.describe_float(tensor_parallel.size):
            note(widened)
        if settings.compute_dtype == "float32" != (settings.rotary_dtype or "float32"):
            note(
                f"rotary_dtype {settings.rotary_dtype} rounds the rotary tables, so results are "
                "not exactly those of float32: leave it out, or give float32."
            )
        defaults = from_generation_config(folder)
        tokenizer = open_tokenizer(folder)
        check_vocabulary(tokenizer, config.vocab_size, folder)
        parsers = tokenizer.parsers_for(chat_template)
        backend = select_backend(device_target)
        group = backend.connect(tensor_parallel, device)
        backend.set_num_threads(group, num_threads)
        check_model_is_shared(group, checkpoint, config, defaults, settings, engine_settings)
        opened = open_runner(backend, group, config, checkpoint, settings, device, cache_settings)
    return OpenModel(
        **vars(opened),
        config=config,
        settings=settings,
        tokenizer=tokenizer,
        defaults=defaults,
        reply_parsers=parsers,
    )


def open_runner(
    backend: Backend,
    group: ProcessGroup,
    config: GlmConfig,
    checkpoint: Checkpoint,
    settings: RunnerSettings,
    device: DeviceSettings,
    packed_cache: PackedCacheSettings | None = None,
) -> OpenRunner:
    """Load a checkpoint into the backend's network: the one way to a runner.

    Args:
        group: what `backend.connect` has given.
        packed_cache: None: no cache.
    Raises:
        UnsupportedError: the backend cannot run it; from the config alone, before a weight is read.
        MemoryBudgetError: it does not fit; likewise.
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
    """
    backend.check_supported(config, settings)
    # From the sizes in the headers; again below with the real ones.
    cap_bytes = device.max_device_memory
    check_memory_before_loading(backend, config, settings, cap_bytes, group)
    if checkpoint.dtype != settings.params_dtype:
        note(f"weights stored in {checkpoint.dtype} run in {settings.params_dtype} (params_dtype)")
    runner = backend.create_runner(config, checkpoint, settings, packed_cache)
    try:
        num_blocks = plan_kv_blocks_of(backend, runner, settings, cap_bytes, group)
        runner.allocate_kv_cache(num_blocks)
    except BaseException:
        runner.close()
        raise
    return OpenRunner(runner, num_blocks, group)
