"""The publisher's own ChatGLM2-6B-int4 and -int8: the decoder's four linear layers, by rows.

Source: `extract_int4_weight_to_float` and `extract_int8_weight_to_float` of the CPU kernel that
those folders bring (quantization_kernels.c): of two int4 in a byte the upper one comes first, in
two's complement; no zero points.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import (
    QuantizedRows,
    StaticActivation,
    StoredScheme,
    StoredTensors,
    TensorSpec,
)
from mindformers_glm.quantization import checks, packing
from mindformers_glm.quantization.plain_format import PlainFormat


@dataclass(frozen=True)
class ChatGlmPackedFormat(PlainFormat):
    """`quantization_bit` of config.json and the layers that have scales."""

    bits: int
    source: StoredTensors

    @property
    def tool(self) -> str:
        """See CheckpointFormat."""
        return f"ChatGLM's own quantization_bit {self.bits}"

    def linear(self, layer: str, shape: tuple[int, int]) -> "ChatGlmPackedLinear | None":
        """See CheckpointFormat; the embedding and the output layer are float."""
        is_quantized = ".layers." in layer or f"{layer}.weight_scale" in self.source.entries
        return ChatGlmPackedLinear(layer, shape, self.bits) if is_quantized else None


@dataclass(frozen=True)
class ChatGlmPackedLinear:
    """One quantized linear layer."""

    layer: str
    shape: tuple[int, int]
    bits: int

    @property
    def scheme(self) -> StoredScheme:
        """See QuantizedLinear."""
        return StoredScheme(self.bits)

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear."""
        num_rows, num_columns = self.shape
        width = num_columns * self.bits // 8
        return {
            f"{self.layer}.weight": TensorSpec((num_rows, width), ("int8",)),
            f"{self.layer}.weight_scale": TensorSpec(
                (num_rows,), ("float16", "float32", "bfloat16")
            ),
        }

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear."""
        per_byte = 8 // self.bits
        octets = packing.aligned(columns, per_byte)
        words = stored[f"{self.layer}.weight"][rows.start : rows.stop, octets.start : octets.stop]
        if self.bits == 4:
            words = packing.swap_nibbles(words)
        values = packing.unpack(words, self.bits)[:, packing.trim(columns, per_byte)]
        name = f"{self.layer}.weight_scale"
        scales = checks.as_scales(stored[name][rows.start : rows.stop], name)
        return QuantizedRows(
            packing.as_signed(np.ascontiguousarray(values), self.bits),
            scales[:, None],
            None,
            np.zeros(len(columns), np.intp),
        )

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear."""
        return None


def open_format(quantization_bit: Any, source: StoredTensors) -> ChatGlmPackedFormat:
    """See ChatGlmPackedFormat.

    Raises:
        UnsupportedError: of other bits than the publisher's.
        CheckpointError: no layer is quantized, though config.json says so.
    """
    if type(quantization_bit) is not int or quantization_bit not in (4, 8):
        raise UnsupportedError(
            f"config.json has quantization_bit {quantization_bit!r:.40}, expected 4 or 8."
        )
    if not any(name.endswith(".weight_scale") for name in source.entries):
        raise CheckpointError(
            f"config.json has quantization_bit {quantization_bit}, but no tensor is a "
            "weight_scale: the weights are float, set it to 0."
        )
    return ChatGlmPackedFormat(quantization_bit, source)
