"""What each part of upstream's network makes in a step, taken by hooks on its Cells.

MindSpore calls hooks in PYNATIVE_MODE only. A result is copied to the host as soon as it is there,
so an operator that fails on the device is known by the part before it.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM
from mindformers_glm.backends.parts import EMBEDDING, FINAL_LAYERNORM, LOGITS, Part, PartValues
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import partition
from mindformers_glm.core.sharding import TensorParallel

_NORMS = (
    "input_layernorm",
    "post_self_attn_layernorm",
    "pre_mlp_layernorm",
    "post_mlp_layernorm",
)
_QKV = ("linear_qkv query", "linear_qkv key", "linear_qkv value")
_GATE_UP = ("linear_fc1 gate", "linear_fc1 up")
# Cells of a layer whose result is a part, or several side by side.
_RESULTS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in _NORMS},
    "self_attention.linear_qkv": _QKV,
    "self_attention.linear_proj": ("linear_proj",),
    "mlp.linear_fc1": _GATE_UP,
    "mlp.linear_fc2": ("linear_fc2",),
}
# Where a part is made by operators that are no Cells: the Cell that is given its result.
_OPERANDS = {"pre_mlp_layernorm": "residual of attention", "mlp.linear_fc2": "activation"}


class PartRecorder:
    """Records a network of one rank, from when it is made until `close`.

    Attributes:
        last: the part that was recorded last; None where none was since the last `take`.
    """

    def __init__(self, network: AscendGlmForCausalLM, config: GlmConfig) -> None:
        self.last: Part | None = None
        self._values: PartValues = {}
        self._layer = 0  # of the step under way; layers share the Cell that rotates
        self._model = network.model
        self._layers = [network.model.decoder.layers[n] for n in range(config.num_hidden_layers)]
        sizes = partition(config, TensorParallel())
        query, kv = sizes.query_size_per_partition, sizes.kv_size_per_partition
        self._ends: dict[tuple[str, ...], list[int]] = {
            _QKV: [query, query + kv],
            _GATE_UP: [config.intermediate_size],
        }
        self._handles = [
            self._watch(self._model.embedding, self._begin),
            self._watch(self._model.decoder.final_layernorm, self._take(FINAL_LAYERNORM)),
            self._watch(self._model.output_layer, self._take(LOGITS)),
        ]
        rotaries: dict[int, nn.Cell] = {}
        for number, layer in enumerate(self._layers):
            for path, names in _RESULTS.items():
                hook = self._take_columns(number, names, _OPERANDS.get(path))
                self._handles.append(self._watch(attrgetter(path)(layer), hook))
            rotary = layer.self_attention.rotary_emb
            rotaries[id(rotary)] = rotary
            core = layer.self_attention.core_attention
            self._handles += [
                core.register_forward_hook(self._take_attention, with_kwargs=True),
                self._watch(layer, self._end_layer),
            ]
        self._handles += [self._watch(rotary, self._take_rotary) for rotary in rotaries.values()]

    def take(self) -> PartValues:
        """What was recorded since the last call."""
        values, self._values, self.last = self._values, {}, None
        return values

    def norms(self, x: np.ndarray, has_sandwich_norms: bool) -> PartValues:
        """What each norm makes of float32 [rows, hidden_size]."""
        rows = Tensor(x, self._model.compute_dtype)
        for layer in self._layers:
            for name in _NORMS:
                if has_sandwich_norms or not name.startswith("post_"):
                    getattr(layer, name)(rows)
        self._model.decoder.final_layernorm(rows)
        return self.take()

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, cell: nn.Cell, hook: Any) -> Any:
        return cell.register_forward_hook(hook)

    def _record(self, part: Part, value: Tensor | np.ndarray) -> None:
        self._values[part] = _to_rows(value) if isinstance(value, Tensor) else value
        self.last = part

    def _begin(self, cell: nn.Cell, operands: Any, result: Tensor) -> None:
        self._layer = 0
        self._record(EMBEDDING, result)

    def _take(self, part: Part) -> Any:
        def hook(cell: nn.Cell, operands: Any, result: Tensor) -> None:
            self._record(part, result)

        return hook

    def _take_columns(self, layer: int, names: tuple[str, ...], operand: str | None) -> Any:
        ends = self._ends.get(names, [])

        def hook(cell: nn.Cell, operands: Any, result: Tensor) -> None:
            if operand is not None:
                self._record(Part(operand, layer), operands[0])
            for name, columns in zip(names, np.split(_to_rows(result), ends, axis=1), strict=True):
                self._record(Part(name, layer), columns)

        return hook

    def _take_rotary(self, cell: nn.Cell, operands: Any, result: tuple[Tensor, Tensor]) -> None:
        for name, value in zip(("rotary query", "rotary key"), result, strict=True):
            self._record(Part(name, self._layer), value)

    def _take_attention(
        self, cell: nn.Cell, operands: Any, named: dict[str, Any], result: Tensor
    ) -> None:
        for name in ("key_cache", "value_cache"):
            *_, num_heads, head_dim = named[name].shape
            by_slot = named[name].reshape(-1, num_heads * head_dim)
            self._record(Part(name, self._layer), by_slot)
        self._record(Part("core_attention", self._layer), result)

    def _end_layer(self, cell: nn.Cell, operands: Any, result: Tensor) -> None:
        self._record(Part("residual of MLP", self._layer), result)
        self._layer += 1


def _to_rows(value: Tensor) -> np.ndarray:
    """float32, the caller's own; NumPy has no bfloat16."""
    return np.array(value.astype(ms.float32).asnumpy())
