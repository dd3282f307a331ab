"""The one form that weights of quantized checkpoints are read into, whatever tool wrote them.

A linear layer W [out, in] is codes, scales and zero points: W = (codes - zeros) * scales, where
groups of columns share a scale and a zero point. What a tool stores instead, packed words, shifted
codes, columns in another order, only its reader in quantization/ knows; where the bytes lie, only
weights/ knows. They meet here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# A tensor of a float checkpoint that a tool's file replaces: its name and this, where it is needed.
REPLACED = ".replaced"
# How activations enter the product.
FLOAT, STATIC, DYNAMIC, MIXED = "float", "static", "dynamic", "mixed"
# What surplus() says of a matrix that lies there a second time, whole beside its parts.
JOINED_PARTS = "its parts for ranks joined"


@dataclass(frozen=True)
class StaticInput:
    """How activations are rounded by one scale and offset of the checkpoint.

    contains_bias: the layer's float bias is in quant_bias and must not be added again.
    """

    scale: float
    offset: float
    contains_bias: bool


@dataclass(frozen=True)
class StoredScheme:
    """How one linear layer of a checkpoint is quantized.

    Attributes:
        weight_bits: of a code.
        group_size: columns that share a scale; None: the whole row.
        is_symmetric: there are no zero points, or all are zero.
        is_reordered: columns of one group lie anywhere (g_idx of GPTQ with desc_act).
        column_order: where they do, and each group has as many of them: a name of the order that
            sorts them by group, the same for the same order.
        has_far_zeros: zero points are no codes: beyond their range, or not whole.
        has_float_codes: codes are FP8 numbers and no integers.
        activation: FLOAT: the product is with activations as they are; STATIC: with integers by
            one scale and offset of the checkpoint; DYNAMIC: by a scale of each token; MIXED: by
            tokens in prefill, static in decode.
        static_input: of STATIC and MIXED; None: not known, as a tensor is not what it must be.
        label: the tool's own name for it where that says more than the numbers.
        num_segments: parts of the columns that each have scales of their own, of weights and of
            activations (core/segmented_linear.py).
    """

    weight_bits: int
    group_size: int | None = None
    is_symmetric: bool = True
    is_reordered: bool = False
    column_order: str = ""
    has_far_zeros: bool = False
    has_float_codes: bool = False
    activation: str = FLOAT
    static_input: StaticInput | None = None
    label: str | None = None
    num_segments: int = 1

    @property
    def has_rounded_columns(self) -> bool:
        """Whether each column of the activations has a scale and offset of the checkpoint."""
        return self.activation == STATIC and self.num_segments > 1

    @property
    def name(self) -> str:
        """For people: "W4A16, groups of 128, asymmetric"."""
        bits = 16 if self.activation == FLOAT else 8
        kind = "FP8" if self.has_float_codes else f"W{self.weight_bits}A{bits}"
        details = [
            self.label or (kind if self.activation == FLOAT else f"{kind} {self.activation}"),
            f"groups of {self.group_size}" if self.group_size and self.num_segments == 1 else "",
            "" if self.is_symmetric else "asymmetric",
            "columns reordered" if self.is_reordered else "",
            f"scales for {self.num_segments} ranks" if self.num_segments > 1 else "",
        ]
        return ", ".join(filter(None, details))


@dataclass(frozen=True)
class StaticActivation:
    """What a layer's product with integer activations of one scale needs (static W8A8).

    x_int = clip(rint(x / input_scale + input_offset)), and the result is
    (x_int W_int^T + quant_bias) * deq_scale.

    Attributes:
        quant_bias: int32 [rows]; deq_scale: float32 [rows].
        contains_bias: the layer's float bias is in quant_bias and must not be added again.
    """

    input_scale: float
    input_offset: float
    quant_bias: np.ndarray
    deq_scale: np.ndarray
    contains_bias: bool


@dataclass(frozen=True)
class QuantizedRows:
    """Some rows and columns of a quantized matrix.

    Attributes:
        codes: int8 [rows, columns]; float32 where they are FP8 numbers.
        scales: float32 [rows, groups].
        zeros: float32 [rows, groups], in the unit of codes; None: all are zero.
        groups: int [columns], the group of each column.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    groups: np.ndarray

    def sorted_by_group(self) -> tuple[np.ndarray, "QuantizedRows"]:
        """The order of columns (`sort_columns`), and the rows in it."""
        order = sort_columns(self.groups)
        codes = np.take(self.codes, order, axis=1)
        return order, QuantizedRows(codes, self.scales, self.zeros, self.groups[order])

    def dequantized(self) -> np.ndarray:
        """The float32 [rows, columns] that the tool means."""
        weight = self.codes.astype(np.float32)
        if self.zeros is not None:
            weight -= self._by_column(self.zeros)
        weight *= self._by_column(self.scales)
        return weight

    def _by_column(self, values: np.ndarray) -> np.ndarray:
        return values if values.shape[1] == 1 else values[:, self.groups]


def sort_columns(groups: np.ndarray) -> np.ndarray:
    """int [columns]: the columns of the first group, ascending, then those of the next."""
    return np.argsort(groups, kind="stable")


@dataclass(frozen=True)
class EncodedRows:
    """Some rows of a quantized matrix as tensors of our own, by the ends of their names.

    Attributes:
        by_row: the first axis is rows; those of further rows follow.
        whole: the same for all rows.
    """

    by_row: Mapping[str, np.ndarray]
    whole: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a checkpoint must hold for a layer; any of the dtypes will do."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


class TensorHeader(Protocol):
    """What is known of a stored tensor before it is read."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class StoredTensors(Protocol):
    """The tensors of a checkpoint, for a reader that must look at one before all are read."""

    @property
    def entries(self) -> Mapping[str, TensorHeader]: ...

    def array(self, name: str) -> np.ndarray:
        """The tensor as `QuantizedLinear.read` is given it."""
        ...


class QuantizedLinear(Protocol):
    """One linear layer as a tool stores it."""

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of its matrix."""
        ...

    @property
    def scheme(self) -> StoredScheme | None:
        """How it is quantized; may look at tensors, of which names and shapes are checked.

        None: it is float, in several tensors.
        """
        ...

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """All tensors of the layer but its float bias, by their whole names."""
        ...

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """Some of the weight.

        Args:
            stored: the tensors by name, bfloat16 as float32, FP8 as uint8.
        Raises:
            CheckpointError: values that cannot be meant, such as a scale that is zero or NaN.
        """
        ...

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """How activations enter; None unless static or mixed."""
        ...


class CheckpointFormat(Protocol):
    """A quantizing tool's format, of one checkpoint."""

    @property
    def tool(self) -> str:
        """Which tool wrote it, and in which format."""
        ...

    def linear(self, layer: str, shape: tuple[int, int]) -> QuantizedLinear | None:
        """The form of a linear layer, by its name in the checkpoint; None: it is float.

        Raises:
            CheckpointError: what the tool says of it cannot be.
            UnsupportedError: it is quantized in a way that this version does not read.
        """
        ...

    @property
    def has_kv_scales(self) -> bool:
        """Whether there are scales and offsets of an int8 KV cache, for each channel."""
        ...

    def surplus(self) -> Mapping[str, str]:
        """Tensors that a run does not need: name -> what it is."""
        ...

    def zeros(self) -> Mapping[str, str]:
        """Tensors that a run does not need if they are all zeros: name -> what it is."""
        ...

    def repeats(self, name: str) -> tuple[str, ...]:
        """Other names under which the tool saves a float tensor once more."""
        ...

    def norm_bias(self, name: str) -> str | None:
        """The tensor that is added behind the norm of this weight; None: nothing is, or zeros."""
        ...


class LinearEncoder(Protocol):
    """Writes quantized layers in the one form, to be read back exactly."""

    @property
    def description_name(self) -> str:
        """File beside the tensors that names the layers and their schemes."""
        ...

    def describe(self, tool: str, layers: Mapping[str, StoredScheme]) -> dict[str, Any]:
        """What that file says of layers, by their names."""
        ...

    def encode(
        self, name: str, scheme: StoredScheme, rows: QuantizedRows, static: StaticActivation | None
    ) -> EncodedRows:
        """Some rows of a matrix, and how activations enter their product.

        Raises:
            CheckpointError: rows that the scheme does not describe.
        """
        ...
