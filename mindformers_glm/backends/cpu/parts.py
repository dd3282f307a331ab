"""The CPU network part by part, by the CPU's own operators: what another device is compared with.

network.py has several parts in one operator; here each is an operator of its own, on NumPy arrays
and without MindSpore, which is busy with the other device. Products are float32 whatever type the
weights have. tests/ascend_contract/test_parts.py holds that both make the same logits.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from mindformers_glm.backends.cpu.attn_metadata import AttnMetadataBuffer
from mindformers_glm.backends.cpu.operators import call_operator
from mindformers_glm.backends.cpu.part_weights import load_part_weights
from mindformers_glm.backends.cpu.rotary import build_cos_sin_table
from mindformers_glm.backends.parts import EMBEDDING, FINAL_LAYERNORM, LOGITS, Part, PartValues
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import partition
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint

_FINAL_NORM = "decoder.final_layernorm.weight"
# A layer's norms: the part, and the parameter that it multiplies by.
_NORMS = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm": "mlp.linear_fc1.layer_norm_weight",
}
_SANDWICH_NORMS = {
    "post_self_attn_layernorm": "post_self_attn_layernorm.weight",
    "post_mlp_layernorm": "post_mlp_layernorm.weight",
}


class CpuParts:
    """A loaded network (protocol: PartReference in backends/parts.py).

    Args:
        settings: whose `params_dtype` is the type of the weights and `rotary_dtype` that of the
            rotary tables; of one rank.
        num_blocks: of each of the two KV caches, which are float32.
    """

    def __init__(
        self, config: GlmConfig, checkpoint: Checkpoint, settings: RunnerSettings, num_blocks: int
    ) -> None:
        self._config = config
        self._weights = load_part_weights(config, checkpoint, settings.params_dtype)
        self._cos_sin = build_cos_sin_table(
            settings.max_model_len,
            config.rotary_dim,
            config.rope_theta,
            config.rope_scaling,
            settings.rotary_dtype or "float32",
        )
        self._norms = _NORMS | (_SANDWICH_NORMS if config.has_sandwich_norms else {})
        self._cache_shape = (num_blocks, settings.block_size)
        self._given_caches, self._own_caches = (
            [self._empty_cache(config.num_key_value_heads) for _ in self._layers] for _ in range(2)
        )

    def follow(self, batch: ModelBatch, given: PartValues) -> PartValues:
        """See PartReference."""
        flow = _Flow(given)
        with suppress(_EndOfGivenError):
            self._run(batch, flow, self._given_caches)
        return flow.made

    def run(self, batch: ModelBatch) -> PartValues:
        """See PartReference."""
        flow = _Flow()
        self._run(batch, flow, self._own_caches)
        return flow.made

    def norms(self, x: np.ndarray) -> PartValues:
        """See PartReference."""
        parts = [Part(name, layer) for layer in self._layers for name in self._norms]
        return {part: self._norm(x, part) for part in (*parts, FINAL_LAYERNORM)}

    @property
    def _layers(self) -> range:
        return range(self._config.num_hidden_layers)

    def _run(self, batch: ModelBatch, flow: "_Flow", caches: Sequence["_Cache"]) -> None:
        ids = batch.token_ids.astype(np.int32)
        table = self._weights["embedding.word_embeddings.weight"].array
        flow[EMBEDDING] = call_operator(
            "glm_embedding", len(ids), self._config.hidden_size, ids, table, _count(ids)
        )
        x = EMBEDDING
        for layer, cache in zip(self._layers, caches, strict=True):
            self._attend(layer, x, flow, batch, cache)
            self._feed_forward(layer, flow)
            x = Part("residual of MLP", layer)
        flow[FINAL_LAYERNORM] = self._norm(flow[x], FINAL_LAYERNORM)
        flow[LOGITS] = self._linear(flow[FINAL_LAYERNORM][batch.sample_rows], "output_layer")

    def _attend(
        self, layer: int, x: Part, flow: "_Flow", batch: ModelBatch, cache: "_Cache"
    ) -> None:
        """From a layer's input `x` to the residual stream behind its attention."""

        def part(name: str) -> Part:
            return Part(name, layer)

        prefix = f"decoder.layers.{layer}.self_attention"
        norm, normed, joined = map(
            part, ("input_layernorm", "post_self_attn_layernorm", "residual of attention")
        )
        qkv = [part(f"linear_qkv {name}") for name in ("query", "key", "value")]
        rotary_query, rotary_key, core = map(part, ("rotary query", "rotary key", "core_attention"))
        metadata = _make_metadata(batch)
        sizes = partition(self._config, TensorParallel())
        flow[norm] = self._norm(flow[x], norm)
        product = self._linear(flow[norm], f"{prefix}.linear_qkv")
        ends = np.cumsum([sizes.query_size_per_partition, sizes.kv_size_per_partition])
        for name, columns in zip(qkv, np.split(product, ends, axis=1), strict=True):
            flow[name] = columns
        query, key, value = qkv
        flow[rotary_query] = self._rotate(flow[query], batch.slot_mapping, metadata)
        flow[rotary_key] = self._rotate(flow[key], batch.slot_mapping, metadata)
        rows = np.concatenate([flow[rotary_query], flow[rotary_key], flow[value]], axis=1)
        # They are rotated already: this table turns nothing.
        still = np.zeros_like(self._cos_sin)
        still[:, : still.shape[1] // 2] = 1
        width = sizes.query_size_per_partition
        flow[core] = cache.call("glm_attention", width, rows, still, metadata)
        flow[part("key_cache")], flow[part("value_cache")] = cache.by_slot()
        flow[part("linear_proj")] = self._linear(flow[core], f"{prefix}.linear_proj")
        flow[normed] = self._norm_if_any(flow[part("linear_proj")], normed)
        flow[joined] = _add(flow[normed], flow[x])

    def _feed_forward(self, layer: int, flow: "_Flow") -> None:
        """From the residual stream behind a layer's attention to its output."""

        def part(name: str) -> Part:
            return Part(name, layer)

        prefix = f"decoder.layers.{layer}.mlp"
        x, norm, normed = map(
            part, ("residual of attention", "pre_mlp_layernorm", "post_mlp_layernorm")
        )
        gate, up, activation, fc2 = map(
            part, ("linear_fc1 gate", "linear_fc1 up", "activation", "linear_fc2")
        )
        flow[norm] = self._norm(flow[x], norm)
        both = self._linear(flow[norm], f"{prefix}.linear_fc1")
        flow[gate], flow[up] = np.split(both, 2, axis=1)
        # The CPU has this in one operator with the product, and not by itself.
        flow[activation] = flow[gate] / (1 + np.exp(-flow[gate])) * flow[up]
        flow[fc2] = self._linear(flow[activation], f"{prefix}.linear_fc2")
        flow[normed] = self._norm_if_any(flow[fc2], normed)
        flow[part("residual of MLP")] = _add(flow[normed], flow[x])

    def _norm_if_any(self, x: np.ndarray, part: Part) -> np.ndarray:
        return self._norm(x, part) if part.name in self._norms else x

    def _norm(self, x: np.ndarray, part: Part) -> np.ndarray:
        in_layer = part.layer is not None
        name = f"decoder.layers.{part.layer}.{self._norms[part.name]}" if in_layer else _FINAL_NORM
        eps = np.array([self._config.rms_norm_eps], np.float32)
        weight = self._weights[name].array
        return call_operator("glm_rms_norm", len(x), x.shape[1], x, weight, eps, _count(x))

    def _linear(self, x: np.ndarray, layer_name: str) -> np.ndarray:
        weight = self._weights[f"{layer_name}.weight"]
        assert weight.num_rows is not None
        y = call_operator("glm_linear_f32", len(x), weight.num_rows, x, weight.array, _count(x))
        bias = self._weights.get(f"{layer_name}.bias")
        return y if bias is None else y + bias.array

    def _rotate(self, x: np.ndarray, slots: np.ndarray, metadata: np.ndarray) -> np.ndarray:
        """Queries or keys, by the operator that rotates keys on their way to the cache."""
        scratch = self._empty_cache(x.shape[1] // self._config.head_dim)
        rows = np.concatenate([x, x, x], axis=1)
        scratch.call("glm_write_kv_cache", 1, rows, self._cos_sin, metadata)
        keys, _ = scratch.by_slot()
        return keys[slots]

    def _empty_cache(self, num_heads: int) -> "_Cache":
        num_blocks, block_size = self._cache_shape
        shape = (num_blocks, num_heads, block_size, self._config.head_dim)
        return _Cache(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


class _EndOfGivenError(Exception):
    """A part's input was not given."""


@dataclass
class _Flow:
    """What parts have made; a part reads what was given instead, where something was."""

    given: PartValues | None = None
    made: PartValues = field(default_factory=dict)

    def __getitem__(self, part: Part) -> np.ndarray:
        if self.given is None:
            return self.made[part]
        if part not in self.given:
            raise _EndOfGivenError
        return self.given[part]

    def __setitem__(self, part: Part, value: np.ndarray) -> None:
        self.made[part] = value


@dataclass(frozen=True)
class _Cache:
    """Keys and values, float32 [num_blocks, heads, block_size, head_dim]."""

    keys: np.ndarray
    values: np.ndarray

    def call(
        self, symbol: str, width: int, qkv: np.ndarray, cos_sin: np.ndarray, metadata: np.ndarray
    ) -> np.ndarray:
        """An operator that writes to the cache."""
        operands = (qkv, cos_sin, self.keys, self.values, metadata)
        return call_operator(symbol, len(qkv), width, *operands)

    def by_slot(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies of both as [slots, heads * head_dim]."""
        num_blocks, num_heads, block_size, head_dim = self.keys.shape
        shape = (num_blocks * block_size, num_heads * head_dim)
        keys, values = (
            np.array(cache.transpose(0, 2, 1, 3), order="C").reshape(shape)
            for cache in (self.keys, self.values)
        )
        return keys, values


def _make_metadata(batch: ModelBatch) -> np.ndarray:
    num_rows, most_blocks = len(batch.token_ids), max(map(len, batch.block_tables))
    buffer = AttnMetadataBuffer(num_rows, len(batch.seq_lens), most_blocks)
    buffer.fill(
        batch.positions,
        batch.slot_mapping,
        batch.query_start,
        batch.seq_lens,
        batch.block_tables,
    )
    return buffer.array


def _add(branch: np.ndarray, residual: np.ndarray) -> np.ndarray:
    operands = (branch, residual, _count(branch))
    return call_operator("glm_residual_add", len(branch), branch.shape[1], *operands)


def _count(rows: np.ndarray) -> np.ndarray:
    return np.array([len(rows)], np.int32)
