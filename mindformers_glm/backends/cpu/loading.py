"""Fills the network's Parameters from a checkpoint or from its packed cache."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mindformers_glm.backends.cpu import library, mapped_memory, tile_packing
from mindformers_glm.backends.cpu.allocation import count_numa_nodes
from mindformers_glm.backends.cpu.network import GPTModel
from mindformers_glm.backends.cpu.parameters import LoadInto
from mindformers_glm.backends.cpu.weighted_module import WeightedModule
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.system.interrupts import restore_interrupt_handler
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.packed_cache import PackedCache, PackedCacheSettings
from mindformers_glm.weights.rules import build_rules, without_kv_scales


@dataclass(frozen=True)
class LoadedBytes:
    """Where the weights came from: a mapped cache file, or the checkpoint (0 of it: a cache)."""

    mapped: int
    read: int


def load_network(
    model: GPTModel,
    config: GlmConfig,
    checkpoint: Checkpoint,
    settings: RunnerSettings,
    packed_cache: PackedCacheSettings | None,
) -> LoadedBytes:
    """Fill every Parameter; all names and shapes are checked first.

    Args:
        packed_cache: how an earlier start's result is used; None: not at all.
    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
    """
    modules = _weighted_modules(model)
    for module in modules.values():
        module.place_weights()
    cache = None
    if packed_cache is not None and packed_cache.mode != "off":
        weight_format = settings.weight_format | {"layout": weight_layout()}
        arrays = weight_arrays(model)
        cache = PackedCache(packed_cache, checkpoint, weight_format, arrays, file_mapper())
    cuts = checkpoint.cuts(config, settings.tensor_parallel)
    rules = build_rules(config, cuts, checkpoint.quantized)
    if not settings.uses_kv_scales:
        rules = without_kv_scales(rules)
    targets: dict[str, LoadInto] = {
        f"{module_name}.{name}": target
        for module_name, module in modules.items()
        for name, target in module.weight_targets().items()
    }
    read = load_weights(checkpoint, rules, targets, cache=cache)
    restore_interrupt_handler()
    return LoadedBytes(mapped=cache.mapped_bytes if cache is not None else 0, read=read)


def weight_arrays(model: GPTModel) -> dict[str, np.ndarray]:
    """The memory of every Parameter that holds weights, by its Megatron-Core name."""
    return {
        f"{module_name}.{name}": array
        for module_name, module in _weighted_modules(model).items()
        for name, array in module.weight_arrays().items()
    }


def kv_cache_arrays(model: GPTModel) -> list[np.ndarray]:
    """The memory of every layer's keys and values; no bytes before `allocate_kv_cache`."""
    attention = [layer.self_attention.core_attention for layer in model.decoder.layers]
    return [cache.asnumpy() for module in attention for cache in module.caches]


def weight_layout() -> str:
    """Names the layout of the Parameters, the same for every instruction set (csrc/pack.cc)."""
    return f"cpu{library.ABI_VERSION}-{tile_packing.TILE_N}x{tile_packing.TILE_K}"


def file_mapper() -> Callable[[np.ndarray, int, int], None] | None:
    """What lets a large Parameter be a part of a file, or None where it had better be copied.

    With several memory nodes a copy lies with the thread that reads it, a file lies anywhere.
    """
    return mapped_memory.map_file if count_numa_nodes() == 1 else None


def _weighted_modules(model: GPTModel) -> dict[str, WeightedModule]:
    """The layers that hold weights, by their Megatron-Core names."""
    return {
        name: module
        for name, module in model.cells_and_names()
        if isinstance(module, WeightedModule)
    }
