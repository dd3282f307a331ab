"""Quantized layers in a folder that is cut for a number of ranks (weights/shares.py).

Whatever a tool stored, a rank's file holds the one form of core/quantized_linear.py: codes without
gaps, scales, zero points and each column's group, and what activations need. So nothing has to be
cut that a tool has packed, and what is read is exactly what the rank would have read of the whole
folder. A description names the tool and each layer's scheme, which are those of the whole layer.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import (
    EncodedRows,
    QuantizedRows,
    StaticActivation,
    StaticInput,
    StoredScheme,
    StoredTensors,
    TensorSpec,
)
from mindformers_glm.quantization import checks, packing
from mindformers_glm.quantization.kv_scales import list_kv_scales
from mindformers_glm.quantization.plain_format import PlainFormat
from mindformers_glm.quantization.shifted_norms import find_norm_bias
from mindformers_glm.system.files import read_json_object

DESCRIPTION_NAME = "model.shares.quantization.json"
_AGAIN = "cut the original checkpoint anew with scripts/process_weights.py"
_MAY_BE = {"group_size": int, "label": str, "static_input": StaticInput}  # besides None
_CODES, _SCALES, _ZEROS, _GROUPS = "weight_codes", "weight_scale", "weight_offset", "weight_groups"
_INPUT_SCALE, _INPUT_OFFSET, _BIAS, _DEQ = "input_scale", "input_offset", "quant_bias", "deq_scale"


class ShareEncoder:
    """Writes what `ShareFormat` reads."""

    description_name = DESCRIPTION_NAME

    def describe(self, tool: str, layers: Mapping[str, StoredScheme]) -> dict[str, Any]:
        """What the description says of layers, by their names."""
        return {"tool": tool, "layers": {name: asdict(scheme) for name, scheme in layers.items()}}

    def encode(
        self, name: str, scheme: StoredScheme, rows: QuantizedRows, static: StaticActivation | None
    ) -> EncodedRows:
        """Some rows of a matrix, whose columns are all that the rank's file will have.

        Args:
            name: what an error calls the matrix.
        Raises:
            CheckpointError: there are zero points that its first rows, and so its scheme, lack.
        """
        if rows.zeros is not None and scheme.is_symmetric:
            raise CheckpointError(
                f"{name} has zero points in some rows and none in its first ones: quantize the "
                "model again, all of a layer with them or without."
            )
        by_row = {_CODES: _pack(rows.codes, scheme), _SCALES: rows.scales.astype(np.float32)}
        whole = {}
        if not scheme.is_symmetric:
            zeros = np.zeros_like(rows.scales) if rows.zeros is None else rows.zeros
            by_row[_ZEROS] = zeros.astype(np.float32)
        if rows.scales.shape[1] > 1:
            whole[_GROUPS] = rows.groups.astype(np.int32)
        if static is not None:
            whole[_INPUT_SCALE] = np.array([static.input_scale], np.float64)
            whole[_INPUT_OFFSET] = np.array([static.input_offset], np.float64)
            by_row |= {_BIAS: static.quant_bias, _DEQ: static.deq_scale}
        return EncodedRows(by_row, whole)


def _pack(codes: np.ndarray, scheme: StoredScheme) -> np.ndarray:
    """One byte [rows, columns] for FP8 and int8, else several columns to a byte."""
    if scheme.has_float_codes:
        return packing.encode_e4m3(codes)
    return codes if scheme.weight_bits == 8 else packing.pack(codes, scheme.weight_bits)


@dataclass(frozen=True)
class ShareFormat(PlainFormat):
    """The description of a folder of shares."""

    file: Path
    tool: str
    schemes: Mapping[str, StoredScheme]
    source: StoredTensors

    def linear(self, layer: str, shape: tuple[int, int]) -> "ShareLinear | None":
        """See CheckpointFormat; the shape is that of the rank's share."""
        if layer not in self.schemes:
            return None
        return ShareLinear(layer, shape, self.schemes[layer], self.source)

    def surplus(self) -> Mapping[str, str]:
        """See CheckpointFormat; what no run needs was left out. Scales are of a rank's heads."""
        return list_kv_scales(self.source.entries)

    @property
    def has_kv_scales(self) -> bool:
        """Whether there are scales and offsets of an int8 KV cache."""
        return bool(self.surplus())

    def norm_bias(self, name: str) -> str | None:
        """See CheckpointFormat."""
        return find_norm_bias(name, self.source)


@dataclass(frozen=True)
class ShareLinear:
    """A rank's share of one quantized linear layer."""

    layer: str
    shape: tuple[int, int]
    scheme: StoredScheme
    source: StoredTensors

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear; how many groups there are, the scales' header says."""
        num_rows, num_columns = self.shape
        bits = self.scheme.weight_bits
        width = -(-num_columns * bits // 8)
        scales = self.source.entries.get(f"{self.layer}.{_SCALES}")
        groups = 1 if scales is None or len(scales.shape) != 2 else scales.shape[1]
        is_signed = bits == 8 and not self.scheme.has_float_codes
        by_group = TensorSpec((num_rows, groups), ("float32",))
        specs = {
            _CODES: TensorSpec((num_rows, width), ("int8" if is_signed else "uint8",)),
            _SCALES: by_group,
        }
        if not self.scheme.is_symmetric:
            specs[_ZEROS] = by_group
        if groups > 1:
            specs[_GROUPS] = TensorSpec((num_columns,), ("int32",))
        if f"{self.layer}.{_DEQ}" in self.source.entries:
            specs[_INPUT_SCALE] = specs[_INPUT_OFFSET] = TensorSpec((1,), ("float64",))
            specs[_BIAS] = TensorSpec((num_rows,), ("int32",))
            specs[_DEQ] = TensorSpec((num_rows,), ("float32",))
        return {f"{self.layer}.{name}": spec for name, spec in specs.items()}

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear."""
        lines = slice(rows.start, rows.stop)
        name = f"{self.layer}.{_SCALES}"
        scales = checks.as_scales(stored[name][lines], name)
        groups = np.zeros(len(columns), np.intp)
        if (order := stored.get(f"{self.layer}.{_GROUPS}")) is not None:
            name = f"{self.layer}.{_GROUPS}"
            _, groups = checks.groups_by_order(order, name, columns, scales.shape[1])
        zeros = None
        if not self.scheme.is_symmetric:
            name = f"{self.layer}.{_ZEROS}"
            zeros = checks.as_zeros(stored[name][lines], name)
        return QuantizedRows(self._read_codes(stored, lines, columns), scales, zeros, groups)

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear."""
        if f"{self.layer}.{_DEQ}" not in stored:
            return None
        lines = slice(rows.start, rows.stop)
        scale_name, deq_name = f"{self.layer}.{_INPUT_SCALE}", f"{self.layer}.{_DEQ}"
        checks.as_scales(stored[scale_name], scale_name)
        return StaticActivation(
            float(stored[scale_name][0]),
            float(stored[f"{self.layer}.{_INPUT_OFFSET}"][0]),
            stored[f"{self.layer}.{_BIAS}"][lines],
            checks.as_scales(stored[deq_name][lines], deq_name),
            self.scheme.static_input is not None and self.scheme.static_input.contains_bias,
        )

    def _read_codes(
        self, stored: Mapping[str, np.ndarray], lines: slice, columns: range
    ) -> np.ndarray:
        bits = self.scheme.weight_bits
        octets = packing.aligned(columns, 8 // bits)
        codes = stored[f"{self.layer}.{_CODES}"][lines, octets.start : octets.stop]
        if self.scheme.has_float_codes:
            return packing.E4M3[codes]
        if bits == 8:
            return codes
        values = packing.unpack(codes, bits)[:, packing.trim(columns, 8 // bits)]
        return packing.as_signed(np.ascontiguousarray(values), bits)


def open_format(file: Path, source: StoredTensors) -> ShareFormat:
    """Read the description.

    Raises:
        CheckpointError: it is damaged.
    """
    raw = read_json_object(file, CheckpointError, _AGAIN)
    try:
        schemes = {layer: _read_scheme(found) for layer, found in dict(raw["layers"]).items()}
        tool = str(raw["tool"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{file} is damaged: {_AGAIN}.") from None
    for layer, scheme in schemes.items():
        if not _is_sound(scheme):
            raise CheckpointError(f"{file} has no scheme for {layer!r:.100}: {_AGAIN}.")
    return ShareFormat(file, tool, schemes, source)


def _read_scheme(found: Mapping[str, Any]) -> StoredScheme:
    static = found["static_input"]
    return StoredScheme(
        **{**found, "static_input": None if static is None else StaticInput(**static)}
    )


def _is_sound(scheme: StoredScheme) -> bool:
    """Whether values are such as a writer has put there."""
    defaults = StoredScheme(weight_bits=8)
    names = [field.name for field in fields(scheme)]
    types_fit = all(
        type(getattr(scheme, name)) in (type(getattr(defaults, name)), _MAY_BE.get(name))
        for name in names
    )
    return types_fit and scheme.weight_bits in (2, 4, 8) and (scheme.group_size or 1) > 0
