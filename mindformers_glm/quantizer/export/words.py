"""GPTQ (version 1) and AWQ ("gemm"), transposed and packed into int32 as Hugging Face loads them.

GPTQ packs along the inputs, stores zero points less one, and says of each column which group it is
of; layers that stay float or have other bits are told by GPTQModel's `dynamic`. AWQ packs along the
outputs in an order of its own and has 4 bits and one group size. Scales are float16 in both.
Sources: AutoGPTQ 0.7.1 and AutoAWQ 0.2 as described in quantization/gptq.py; `dynamic`: GPTQModel's
README (2.x).
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.quantization.packing import AWQ_ORDER
from mindformers_glm.quantizer.export.layout import (
    AWQ,
    GPTQ,
    MSMODELSLIM,
    pack_words,
    refuse_kv_scales,
    refuse_norm_bias,
    unsigned,
)
from mindformers_glm.quantizer.export.new_tensor import NewTensor, new_tensor, round_floats
from mindformers_glm.quantizer.export.safetensors_writer import SafetensorsWriter
from mindformers_glm.quantizer.result import KvScales, QuantizedModule

_LABELS = ("W4A16", "W8A16")
_LARGEST_LOSS = 2.0**-10  # of a scale that becomes float16


def check_words(name: str, shape: Sequence[int], bits: int) -> None:
    """Refuse a matrix [rows, columns] that does not fill words.

    Raises:
        UnsupportedError: one side is no multiple of what a word holds.
    """
    per_word = 32 // bits
    if any(size % per_word for size in shape):
        raise UnsupportedError(
            f"{name} is {shape[0]} by {shape[1]}, which words of {per_word} values cannot be: "
            f"take --format {MSMODELSLIM}."
        )


class WordLayout(ABC):
    """See Layout.

    Args:
        linears: all linear modules of the checkpoint.
    """

    name = ""
    bits: tuple[int, ...] = ()

    def __init__(self, writer: SafetensorsWriter, linears: list[str]) -> None:
        self._writer, self._linears = writer, linears
        self._kinds: dict[str, tuple[int, int | None]] = {}
        self._is_symmetric, self._has_order = True, False

    def add_module(self, module: QuantizedModule, bias_dtype: str) -> None:
        """See Layout."""
        self._check(module)
        self._kinds[module.name] = (module.weight_bits, module.group_size)
        self._is_symmetric &= module.rows.zeros is None
        self._has_order |= bool((np.diff(module.rows.groups) < 0).any())
        try:
            codes, zeros = unsigned(module.rows, module.weight_bits)
        except UnsupportedError as problem:
            raise UnsupportedError(f"{module.name}: {problem}.") from None
        for tensor in self._encode(module, codes, zeros):
            self._writer.add(tensor)
        self._writer.add(new_tensor(f"{module.name}.scales", _as_halves(module)))
        if module.bias is not None:
            self._writer.add(round_floats(f"{module.name}.bias", module.bias, bias_dtype))

    def add_float(self, tensor: NewTensor) -> None:
        """See Layout."""
        self._writer.add(tensor)

    def add_shifted_norm(self, name: str, weight: np.ndarray, bias: np.ndarray, dtype: str) -> None:
        """See Layout."""
        refuse_norm_bias(name, bias, self.name)
        self._writer.add(round_floats(f"{name}.weight", weight, dtype))

    def add_kv_scales(self, prefix: str, scales: KvScales) -> None:
        """See Layout."""
        refuse_kv_scales(self.name)

    def finish(self, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """See Layout."""
        self._writer.finish("model")
        kinds = Counter(self._kinds.values())
        usual = kinds.most_common(1)[0][0] if kinds else (self.bits[0], None)
        return config | {"quantization_config": self._describe(*usual)}

    def abandon(self) -> None:
        """See Layout."""
        self._writer.abandon()

    @property
    def _float_linears(self) -> list[str]:
        return [name for name in self._linears if name not in self._kinds]

    def _check(self, module: QuantizedModule) -> None:
        problem = ""
        if module.label not in _LABELS:
            problem = f"is {module.label}, and the format {self.name} has {', '.join(_LABELS)}"
        elif module.weight_bits not in self.bits:
            problem = f"has {module.weight_bits} bits, and the format {self.name} has 4"
        if problem:
            raise UnsupportedError(f"{module.name} {problem}: take --format {MSMODELSLIM}.")
        check_words(module.name, module.rows.codes.shape, module.weight_bits)

    @abstractmethod
    def _encode(
        self, module: QuantizedModule, codes: np.ndarray, zeros: np.ndarray
    ) -> Iterator[NewTensor]:
        """All of a module but its scales and its float bias."""

    @abstractmethod
    def _describe(self, bits: int, group_size: int | None) -> dict[str, Any]:
        """quantization_config, where most layers have these bits and groups."""


class GptqLayout(WordLayout):
    """See the module."""

    name = GPTQ
    bits = (4, 8)

    def _encode(
        self, module: QuantizedModule, codes: np.ndarray, zeros: np.ndarray
    ) -> Iterator[NewTensor]:
        name, bits = module.name, module.weight_bits
        qweight = np.ascontiguousarray(pack_words(codes, bits).T)
        yield new_tensor(f"{name}.qweight", qweight)
        # Less one in the width of the field: 0 becomes the largest value.
        less_one = (zeros.T - np.uint8(1)) & np.uint8(2**bits - 1)
        yield new_tensor(f"{name}.qzeros", pack_words(np.ascontiguousarray(less_one), bits))
        yield new_tensor(f"{name}.g_idx", module.rows.groups.astype(np.int32))

    def _describe(self, bits: int, group_size: int | None) -> dict[str, Any]:
        dynamic: dict[str, dict[str, int]] = {}
        for name in self._linears:
            kind = self._kinds.get(name)
            if kind is None:
                dynamic[f"-:^{re.escape(name)}$"] = {}
            elif kind != (bits, group_size):
                other = {"bits": kind[0], "group_size": kind[1] or -1}
                dynamic[f"+:^{re.escape(name)}$"] = other
        settings = {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": bits,
            "group_size": group_size or -1,
            "desc_act": self._has_order,
            "sym": self._is_symmetric,
            "true_sequential": True,
            "lm_head": any(".layers." not in name for name in self._kinds),
        }
        return settings | ({"dynamic": dynamic} if dynamic else {})


class AwqLayout(WordLayout):
    """See the module."""

    name = AWQ
    bits = (4,)

    def _check(self, module: QuantizedModule) -> None:
        super()._check(module)
        others = {size for _, size in self._kinds.values()} - {module.group_size}
        if others or (np.diff(module.rows.groups) < 0).any():
            raise UnsupportedError(
                f"{module.name} has its columns in another order, or groups of another size than "
                f"the layers before it, which the format {AWQ} does not have: take --format {GPTQ}."
            )

    def _encode(
        self, module: QuantizedModule, codes: np.ndarray, zeros: np.ndarray
    ) -> Iterator[NewTensor]:
        columns = np.ascontiguousarray(codes.T)
        yield new_tensor(f"{module.name}.qweight", pack_words(columns, 4, AWQ_ORDER))
        lines = np.ascontiguousarray(zeros.T)
        yield new_tensor(f"{module.name}.qzeros", pack_words(lines, 4, AWQ_ORDER))

    def _describe(self, bits: int, group_size: int | None) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": bits,
            "group_size": group_size or -1,
            "zero_point": True,  # stored always, also where all are in the middle
            "modules_to_not_convert": self._float_linears,
        }


def _as_halves(module: QuantizedModule) -> np.ndarray:
    """float16 [groups, out].

    Raises:
        UnsupportedError: a scale is too large or too small for that.
    """
    scales = module.rows.scales
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    lost = np.abs(halves.astype(np.float32) - scales) > _LARGEST_LOSS * scales
    if lost.any():
        raise UnsupportedError(
            f"{module.name} has the scale {scales[lost][0]:.3g}, which float16 of GPTQ and AWQ "
            f"cannot hold: take --format {MSMODELSLIM}."
        )
    return np.ascontiguousarray(halves.T)
