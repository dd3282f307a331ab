"""A linear layer of a compressed-tensors folder: which tensors make it, and its rows.

Codes and zero points are signed; packed ones are shifted by half their range, and int32 words hold
the lowest bits first. Sources: those of compressed_tensors.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import (
    STATIC,
    QuantizedRows,
    StaticActivation,
    StaticInput,
    StoredScheme,
    StoredTensors,
    TensorSpec,
)
from mindformers_glm.quantization import checks, packing

PACKED = "pack-quantized"  # the layout whose codes lie in int32 words
_SCALE_TYPES = ("float16", "float32", "bfloat16")
_ONE = ((1,), (), (1, 1))  # shapes of a single number, as versions of the tool write it
_WORD_BITS = 32


@dataclass(frozen=True)
class GroupSettings:
    """What one of config_groups says.

    strategy: "tensor", "channel" or "group".
    activation: FLOAT, STATIC or DYNAMIC.
    has_input_zero: static activations have a zero point.
    has_order: each layer says which group a column is of (actorder "group").
    """

    targets: tuple[str, ...]
    layout: str
    bits: int
    is_float: bool
    strategy: str
    group_size: int | None
    is_symmetric: bool
    activation: str
    has_input_zero: bool
    has_order: bool


@dataclass(frozen=True)
class CompressedLinear:
    """One quantized linear layer."""

    layer: str
    shape: tuple[int, int]
    settings: GroupSettings
    source: StoredTensors

    @cached_property
    def scheme(self) -> StoredScheme:
        """See QuantizedLinear."""
        settings, size = self.settings, self.settings.group_size
        order = checks.peek(self.source, f"{self.layer}.weight_g_idx", self.tensors)
        is_reordered, column_order = checks.read_order(order, size)
        return StoredScheme(
            settings.bits,
            size,
            settings.is_symmetric,
            is_reordered=is_reordered,
            column_order=column_order,
            has_float_codes=settings.is_float,
            activation=settings.activation,
            static_input=self._peek_static_input() if settings.activation == STATIC else None,
        )

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear."""
        settings, (num_rows, num_columns) = self.settings, self.shape
        groups = checks.count_groups(self.layer, num_columns, settings.group_size)
        is_whole = settings.strategy == "tensor"
        scales = self._one("weight_scale") if is_whole else (num_rows, groups)
        specs = {"weight_scale": TensorSpec(scales, _SCALE_TYPES)}
        if settings.layout == PACKED:
            words = -(-num_columns * settings.bits // _WORD_BITS)
            specs["weight_packed"] = TensorSpec((num_rows, words), ("int32",))
            specs["weight_shape"] = TensorSpec((2,), ("int64", "int32"))
        else:
            code = "float8_e4m3" if settings.is_float else "int8"
            specs["weight"] = TensorSpec((num_rows, num_columns), (code,))
        if not settings.is_symmetric:
            specs["weight_zero_point"] = self._zero_point_spec(scales)
        if self._has("weight_g_idx") or settings.has_order:
            specs["weight_g_idx"] = TensorSpec((num_columns,), ("int32", "int64"))
        if settings.activation == STATIC or (settings.is_float and self._has("input_scale")):
            specs["input_scale"] = TensorSpec(self._one("input_scale"), _SCALE_TYPES)
            if settings.has_input_zero or self._has("input_zero_point"):
                one = self._one("input_zero_point")
                specs["input_zero_point"] = TensorSpec(one, ("int8", "float8_e4m3"))
        return {f"{self.layer}.{name}": spec for name, spec in specs.items()}

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear."""
        taken, groups = self._find_groups(stored, columns)
        codes = self._read_codes(stored, rows, columns)
        scale_name, zero_name = f"{self.layer}.weight_scale", f"{self.layer}.weight_zero_point"
        scales = self._by_rows(stored[scale_name], rows, taken)
        zeros = None
        if not self.settings.is_symmetric:
            found = stored[zero_name]
            if self._has_packed_zeros:
                found = self._unpack(found.T).T[: self.shape[0]]
            zeros = checks.as_zeros(self._by_rows(found, rows, taken), zero_name)
        return QuantizedRows(codes, checks.as_scales(scales, scale_name), zeros, groups)

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear; offsets of the input are taken off by their integer product."""
        if self.settings.activation != STATIC:
            return None
        name = f"{self.layer}.input_scale"
        scale = checks.as_scales(stored[name], name).reshape(-1)[0]
        zero = stored.get(f"{self.layer}.input_zero_point")
        offset = 0 if zero is None else int(zero.reshape(-1)[0])
        weight = self.read(stored, rows, range(self.shape[1]))
        sums = weight.codes.sum(axis=1, dtype=np.int32)
        return StaticActivation(
            float(scale), offset, -offset * sums, scale * weight.scales[:, 0], contains_bias=False
        )

    def _peek_static_input(self) -> StaticInput | None:
        return checks.peek_static_input(
            self.source,
            self.tensors,
            f"{self.layer}.input_scale",
            f"{self.layer}.input_zero_point",
            contains_bias=False,
        )

    def _one(self, name: str) -> tuple[int, ...]:
        """The shape of a single number, as it is stored if it is one."""
        entry = self.source.entries.get(f"{self.layer}.{name}")
        return entry.shape if entry is not None and entry.shape in _ONE else _ONE[0]

    def _has(self, name: str) -> bool:
        return f"{self.layer}.{name}" in self.source.entries

    @property
    def _has_packed_zeros(self) -> bool:
        """Packed along the outputs since compressed-tensors 0.9; int8 before."""
        name = f"{self.layer}.weight_zero_point"
        return self.settings.layout == PACKED and self.source.entries[name].dtype == "int32"

    def _zero_point_spec(self, scales: tuple[int, ...]) -> TensorSpec:
        if self._has("weight_zero_point") and self._has_packed_zeros:
            words = -(-scales[0] * self.settings.bits // _WORD_BITS)
            return TensorSpec((words, *scales[1:]), ("int32",))
        return TensorSpec(scales, ("int8",))

    def _find_groups(
        self, stored: Mapping[str, np.ndarray], columns: range
    ) -> tuple[slice, np.ndarray]:
        name = f"{self.layer}.weight_g_idx"
        if name not in stored:
            return checks.group_of_columns(columns, self.settings.group_size)
        return checks.groups_by_order(
            stored[name], name, columns, self.tensors[f"{self.layer}.weight_scale"].shape[1]
        )

    def _by_rows(self, values: np.ndarray, rows: range, taken: slice) -> np.ndarray:
        """[rows, groups] of a scale for each group, row or matrix."""
        if self.settings.strategy == "tensor":
            return np.full((len(rows), 1), values.reshape(-1)[0], values.dtype)
        return values[rows.start : rows.stop, taken]

    def _read_codes(
        self, stored: Mapping[str, np.ndarray], rows: range, columns: range
    ) -> np.ndarray:
        if self.settings.layout != PACKED:
            codes = stored[f"{self.layer}.weight"][
                rows.start : rows.stop, columns.start : columns.stop
            ]
            if self.settings.bits == 4:
                checks.check_int4(codes, f"{self.layer}.weight")
            return self._decode(codes) if self.settings.is_float else codes
        shape = stored[f"{self.layer}.weight_shape"]
        if tuple(shape) != self.shape:
            raise CheckpointError(
                f"{self.layer}.weight_shape is {shape.tolist()}, expected {list(self.shape)}: the "
                "file is damaged or of another model."
            )
        per_word = _WORD_BITS // self.settings.bits
        words = packing.aligned(columns, per_word)
        packed = stored[f"{self.layer}.weight_packed"]
        values = self._unpack(packed[rows.start : rows.stop, words.start : words.stop])
        return np.ascontiguousarray(values[:, packing.trim(columns, per_word)])

    def _decode(self, octets: np.ndarray) -> np.ndarray:
        values = packing.E4M3[octets]
        if np.isnan(values).any():
            raise CheckpointError(f"{self.layer}.weight holds NaN: download the file again.")
        return values

    def _unpack(self, words: np.ndarray) -> np.ndarray:
        """int8, from values that are shifted by half their range."""
        shift = np.uint8(2 ** (self.settings.bits - 1))
        values = packing.unpack(np.ascontiguousarray(words), self.settings.bits)
        return (values - shift).view(np.int8)
