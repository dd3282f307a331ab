"""compressed-tensors, which vLLM and Hugging Face load: config.json says which layer is how.

Sources: what llm-compressor 0.5.1 writes (`ct_*` of the outputs that quantization/
compressed_tensors.py was compared with), and the fields of compressed-tensors 0.9. Schemes become
groups of the configuration: one with the target "Linear", or several that name their layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, STATIC
from mindformers_glm.quantizer.export.layout import (
    COMPRESSED_TENSORS,
    MSMODELSLIM,
    pack_words,
    refuse_kv_scales,
    refuse_norm_bias,
    unsigned,
)
from mindformers_glm.quantizer.export.new_tensor import NewTensor, new_tensor, round_floats
from mindformers_glm.quantizer.export.safetensors_writer import SafetensorsWriter
from mindformers_glm.quantizer.result import KvScales, QuantizedModule

_PACKED, _INTS = "pack-quantized", "int-quantized"
# How activations enter, by msModelSlim's word for a scheme.
_ACTIVATIONS = {
    "W8A8": STATIC,
    "W8A8S": STATIC,
    "W8A16": FLOAT,
    "W4A16": FLOAT,
    "W8A8_DYNAMIC": DYNAMIC,
    "W4A8_DYNAMIC": DYNAMIC,
}


@dataclass(frozen=True)
class _Scheme:
    """What layers of one group have in common."""

    bits: int
    group_size: int | None
    is_symmetric: bool
    activation: str
    has_order: bool

    @property
    def layout(self) -> str:
        return _PACKED if self.activation == FLOAT else _INTS

    def as_config(self, targets: list[str], has_own_layout: bool) -> dict[str, Any]:
        """One of config_groups."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.is_symmetric,
            "strategy": "channel" if self.group_size is None else "group",
            "group_size": self.group_size,
            "dynamic": False,
            "actorder": "group" if self.has_order else None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        }
        inputs = None
        if self.activation != FLOAT:
            is_dynamic = self.activation == DYNAMIC
            inputs = {
                "num_bits": 8,
                "type": "int",
                "symmetric": is_dynamic,
                "strategy": "token" if is_dynamic else "tensor",
                "group_size": None,
                "dynamic": is_dynamic,
                "actorder": None,
                "block_structure": None,
                "observer": None if is_dynamic else "minmax",
                "observer_kwargs": {},
            }
        group: dict[str, Any] = {"targets": targets, "weights": weights}
        group |= {"input_activations": inputs, "output_activations": None}
        return group | ({"format": self.layout} if has_own_layout else {})


class CompressedLayout:
    """See Layout.

    Args:
        linears: all linear modules of the checkpoint; those that are not quantized are named so.
    """

    def __init__(self, writer: SafetensorsWriter, linears: list[str]) -> None:
        self._writer, self._linears = writer, linears
        self._schemes: dict[_Scheme, list[str]] = {}

    def add_module(self, module: QuantizedModule, bias_dtype: str) -> None:
        """See Layout."""
        scheme = _find_scheme(module)
        self._schemes.setdefault(scheme, []).append(module.name)
        try:
            for tensor in _encode(module, scheme):
                self._writer.add(tensor)
        except UnsupportedError as problem:
            raise UnsupportedError(f"{module.name}: {problem}: take {MSMODELSLIM}.") from None
        if module.bias is not None:
            self._writer.add(round_floats(f"{module.name}.bias", module.bias, bias_dtype))

    def add_float(self, tensor: NewTensor) -> None:
        """See Layout."""
        self._writer.add(tensor)

    def add_shifted_norm(self, name: str, weight: np.ndarray, bias: np.ndarray, dtype: str) -> None:
        """See Layout."""
        refuse_norm_bias(name, bias, COMPRESSED_TENSORS)
        self._writer.add(round_floats(f"{name}.weight", weight, dtype))

    def add_kv_scales(self, prefix: str, scales: KvScales) -> None:
        """See Layout."""
        refuse_kv_scales(COMPRESSED_TENSORS)

    def finish(self, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """See Layout."""
        self._writer.finish("model")
        is_one = len(self._schemes) == 1
        groups = {
            f"group_{number}": scheme.as_config(["Linear"] if is_one else names, not is_one)
            for number, (scheme, names) in enumerate(self._schemes.items())
        }
        layouts = {scheme.layout for scheme in self._schemes}
        quantized = {name for names in self._schemes.values() for name in names}
        settings = {
            "quant_method": "compressed-tensors",
            "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": [name for name in self._linears if name not in quantized],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }
        return config | {"quantization_config": settings}

    def abandon(self) -> None:
        """See Layout."""
        self._writer.abandon()


def _find_scheme(module: QuantizedModule) -> _Scheme:
    activation = _ACTIVATIONS.get(module.label)
    is_symmetric = module.rows.zeros is None
    if activation is None or (activation != FLOAT and not is_symmetric):
        what = "" if is_symmetric else " with zero points of weights"
        raise UnsupportedError(
            f"{module.name} is {module.label}{what}, which the format {COMPRESSED_TENSORS} does "
            f"not have: take --format {MSMODELSLIM}."
        )
    order = module.rows.groups
    has_order = module.group_size is not None and bool((np.diff(order) < 0).any())
    return _Scheme(module.weight_bits, module.group_size, is_symmetric, activation, has_order)


def _encode(module: QuantizedModule, scheme: _Scheme) -> Iterator[NewTensor]:
    """All of a module but its float bias."""
    name, rows = module.name, module.rows
    if scheme.layout == _INTS:
        yield new_tensor(f"{name}.weight", rows.codes)
    else:
        codes, zeros = unsigned(rows, scheme.bits)
        per_word = 32 // scheme.bits
        columns = -codes.shape[1] % per_word  # a last word is filled up
        packed = pack_words(np.pad(codes, ((0, 0), (0, columns))), scheme.bits)
        yield new_tensor(f"{name}.weight_packed", packed)
        yield new_tensor(f"{name}.weight_shape", np.array(rows.codes.shape, np.int64))
        if not scheme.is_symmetric:
            lines = -len(zeros) % per_word
            packed = pack_words(np.pad(zeros, ((0, lines), (0, 0))).T, scheme.bits).T
            yield new_tensor(f"{name}.weight_zero_point", np.ascontiguousarray(packed))
    yield new_tensor(f"{name}.weight_scale", rows.scales.astype(np.float32))
    if scheme.has_order:
        yield new_tensor(f"{name}.weight_g_idx", rows.groups.astype(np.int32))
    if scheme.activation == STATIC and module.static is not None:
        yield new_tensor(f"{name}.input_scale", np.array([module.static.scale], np.float32))
        offset = np.array([module.static.offset]).astype(np.int8)
        yield new_tensor(f"{name}.input_zero_point", offset)
