"""What quantizing gives, layer by layer, in no tool's format: exports read it from here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.output_error import OutputError


@dataclass(frozen=True)
class StaticRange:
    """One scale and offset for all activations of a layer: x_int = clip(rint(x/scale + offset)).

    The offset is a whole number in -128..127.
    """

    scale: np.float32
    offset: np.float32


@dataclass(frozen=True)
class KvScales:
    """Scales and offsets of an int8 KV cache, a channel each: float32 [kv_heads * head_dim]."""

    key_scale: np.ndarray
    key_offset: np.ndarray
    value_scale: np.ndarray
    value_offset: np.ndarray


@dataclass(frozen=True)
class ExchangeScales:
    """Scales of sums that cards exchange as int8, one of each output.

    of_parts: float32 [ranks, out], of what each rank adds; of_sum: float32 [out].
    """

    of_parts: np.ndarray
    of_sum: np.ndarray


@dataclass(frozen=True)
class QuantizedModule:
    """One linear module of the checkpoint, rounded.

    Attributes:
        name: in the checkpoint: "model.layers.0.self_attn.q_proj".
        label: msModelSlim's word for its scheme: W8A8, W8A8S, W8A16, W4A16, W8A8_DYNAMIC,
            W8A8_MIX, W4A8_DYNAMIC.
        weight_bits: 4 or 8.
        group_size: columns that share a scale; None: the whole row.
        rows: all of the weight: codes int8 [out, in], scales and zeros float32 [out, groups];
            of W4A8_DYNAMIC the scales are the product of both levels.
        second_scales: of W4A8_DYNAMIC: float32 [out, groups]; rows.scales are these times
            `first_scales`, float32 [out, 1].
        bias: float32 [out]; None: the module has none.
        static: of W8A8, W8A8S and W8A8_MIX.
        error: of its output on the calibration samples, or of its weight; None: not measured.
        parts: its columns as each rank has them, where they were rounded so; `rows` has them side
            by side, and `static` is None.
    """

    name: str
    label: str
    weight_bits: int
    group_size: int | None
    rows: QuantizedRows
    bias: np.ndarray | None = None
    static: StaticRange | None = None
    first_scales: np.ndarray | None = None
    second_scales: np.ndarray | None = None
    error: OutputError | None = None
    parts: tuple["QuantizedModule", ...] = ()


@dataclass(frozen=True)
class LayerResult:
    """One decoder layer of the checkpoint; or, where it is quantized, the output layer.

    What of the checkpoint is in no result (embedding, final norm, a float output layer) is not
    touched: exports take it from the source.

    Attributes:
        modules: its rounded linear modules, in the order of the checkpoint's names of the network.
        float_tensors: all else by name in the checkpoint, float32: norms, changed by anti-outlier
            methods, biases of norms, modules that stay float and their biases. Float biases of
            `modules` are not among them.
        kv_prefix: of the scales of a cache: "model.layers.0.self_attn", or ChatGLM's
            "transformer.encoder.layers.0.self_attention.query_key_value".
        number: of the layer; None: the output layer.
        exchange_scales: of linears whose columns are split for ranks, float ones too, by name.
    """

    modules: tuple[QuantizedModule, ...]
    float_tensors: Mapping[str, np.ndarray]
    kv_prefix: str = ""
    kv_scales: KvScales | None = None
    number: int | None = None
    exchange_scales: Mapping[str, ExchangeScales] = field(default_factory=dict)
