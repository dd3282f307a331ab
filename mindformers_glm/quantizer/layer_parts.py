"""Where a layer of any dialect lets a scale of a linear's input go: what stands before it.

A linear's input is divided by a scale of each channel, and its columns are multiplied by it; the
layer computes the same if what makes the input is divided:

    norm -> qkv, norm -> gate and up    the norm's weight
    v -> attention -> o                 the rows (and biases) of v: attention mixes tokens, but no
                                        channels, and a head of v is shared by a group of heads of o
    gate, up -> silu(gate) * up -> down the rows of up alone: silu is not linear

Names, and whether q, k and v or gate and up are fused, stand in weights/tensor_names.py. The norms
behind o and down that glm4 has besides are no obstacle: they see the same outputs as before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import cut_blocks
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.tensor_names import (
    FC1,
    FC1_NORM,
    FC2,
    PROJ,
    QKV,
    QKV_BIAS,
    QKV_NORM,
    TENSOR_NAMES,
)

# Norms and the linears behind them; blocks of rows, counted over all tensors of a parameter.
_NORM_OF = {QKV: QKV_NORM, FC1: FC1_NORM}
_VALUE_BLOCK, _UP_BLOCK = 2, 1


@dataclass(frozen=True)
class Rows:
    """Rows of one tensor."""

    name: str
    rows: slice


@dataclass
class LayerParts:
    """The tensors of a layer by what they are, and those that have been changed.

    Attributes:
        tensors: float32, by their names within the layer: "self_attn.q_proj.weight".
        changed: new arrays, by the same names.
    """

    config: GlmConfig
    tensors: Mapping[str, np.ndarray]
    changed: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.changed[name] if name in self.changed else self.tensors[name]

    def linears(self, parameter: str) -> list[str]:
        """Names of the matrices that take one input: QKV, PROJ, FC1 or FC2."""
        return [name for name, _ in self._named_tensors(parameter)]

    def weights(self, parameter: str) -> list[np.ndarray]:
        """The matrices themselves."""
        return [self[name] for name in self.linears(parameter)]

    def norm_of(self, parameter: str) -> str:
        """The name of the norm's weight before QKV or FC1."""
        ((name, _),) = self._named_tensors(_NORM_OF[parameter])
        return name

    def column_max(self, parameter: str) -> np.ndarray:
        """float32 [channels]: the largest |weight| of each column, over all those matrices."""
        return np.max([np.abs(weight).max(axis=0) for weight in self.weights(parameter)], axis=0)

    def divide_input(self, parameter: str, scales: np.ndarray) -> np.ndarray:
        """Divide the input of a linear by scales, and let the layer compute what it did.

        Args:
            scales: float32 [channels], positive.
        Returns:
            What it was divided by: scales, but for PROJ, where heads that share a head of v get
            the mean of theirs.
        """
        if parameter in _NORM_OF:
            self._divide_norm(self.norm_of(parameter), scales)
        elif parameter == PROJ:
            scales = self.mean_over_heads(scales)
            self._divide_rows(self.value_rows(), self._of_value_heads(scales))
        else:
            assert parameter == FC2, parameter
            self._divide_rows([self._find_rows(FC1, _UP_BLOCK)], scales)
        for name in self.linears(parameter):
            self.changed[name] = self[name] * scales
        return scales

    def mean_over_heads(self, scales: np.ndarray) -> np.ndarray:
        """float32 [channels] of PROJ's input, where heads with one head of v have their mean."""
        heads = self._heads(scales)
        return np.broadcast_to(heads.mean(axis=1, keepdims=True), heads.shape).reshape(-1)

    def add_norm_biases(self) -> None:
        """Give the norms before linears the bias of zeros that msModelSlim writes."""
        for name in map(self.norm_of, _NORM_OF):
            bias = name.removesuffix("weight") + "bias"
            if bias not in self.tensors:
                self.changed[bias] = np.zeros_like(self[name])

    def value_rows(self) -> list[Rows]:
        """Rows of v, and its biases where there are some."""
        rows = [self._find_rows(QKV, _VALUE_BLOCK)]
        bias = self._find_rows(QKV_BIAS, _VALUE_BLOCK)
        return [*rows, bias] if bias.name in self.tensors else rows

    def _heads(self, scales: np.ndarray) -> np.ndarray:
        """[heads of v, heads that share it, head_dim]."""
        return scales.reshape(self.config.num_key_value_heads, -1, self.config.head_dim)

    def _of_value_heads(self, scales: np.ndarray) -> np.ndarray:
        """float32 [rows of v], of scales that are the same for all heads that share one."""
        return self._heads(scales)[:, 0].reshape(-1)

    def _divide_norm(self, name: str, scales: np.ndarray) -> None:
        bias = name.removesuffix("weight") + "bias"
        self.changed[name] = self[name] / scales
        if bias in self.tensors:
            self.changed[bias] = self[bias] / scales

    def _divide_rows(self, places: list[Rows], scales: np.ndarray) -> None:
        for place in places:
            values = self[place.name].copy()
            values[place.rows] /= scales[:, None] if values.ndim == 2 else scales
            self.changed[place.name] = values

    def _find_rows(self, parameter: str, wanted: int) -> Rows:
        cuts = cut_blocks(self.config, TensorParallel())
        number = 0
        for name, axes in self._named_tensors(parameter):
            begin = 0
            for block in axes[0]:
                end = begin + cuts[block].length
                if number == wanted:
                    return Rows(name, slice(begin, end))
                number, begin = number + 1, end
        raise AssertionError(f"{parameter} has no block {wanted}")

    def _named_tensors(self, parameter: str) -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
        names = TENSOR_NAMES[self.config.model_type]
        return dict((*names.layer, names.attention_bias))[parameter]
