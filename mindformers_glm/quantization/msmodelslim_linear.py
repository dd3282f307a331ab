"""A linear layer in a folder of msModelSlim: which tensors it has, and what they mean.

Source: outputs of msModelSlim 26.1.0, as msmodelslim.py, which tells the type of each layer; the
tool's page on its weight format for int8 by groups, scales without a second axis, numbers of inputs
in the model's own type (written on a card), and W8A8 without scales of weights (older versions).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import (
    DYNAMIC,
    FLOAT,
    MIXED,
    STATIC,
    QuantizedRows,
    StaticActivation,
    StaticInput,
    StoredScheme,
    StoredTensors,
    TensorSpec,
)
from mindformers_glm.quantization import checks, packing

_PEEKED_ROWS = 16
_NUM_RANKS = 16  # of W4A8's biases
_FLOAT_TYPES = ("float32", "float16", "bfloat16")
_NUMBERS = (*_FLOAT_TYPES, "int8", "int32", "int64")  # of offsets, which are whole


@dataclass(frozen=True)
class TensorType:
    """A type of the description: bits of a weight, and what else lies beside it.

    has_weight_scales: None: as the folder has it.
    """

    bits: int
    activation: str = FLOAT
    has_weight_scales: bool | None = True
    has_second_scales: bool = False

    @property
    def is_static(self) -> bool:
        return self.activation in (STATIC, MIXED)


TYPES = {
    "W8A8": TensorType(8, STATIC, has_weight_scales=None),
    "W8A8_MIX": TensorType(8, MIXED),
    "W8A8S": TensorType(8, STATIC, has_weight_scales=False),
    "W8A8_DYNAMIC": TensorType(8, DYNAMIC),
    "W8A16": TensorType(8),
    "W4A16": TensorType(4),
    "W4A8_DYNAMIC": TensorType(4, DYNAMIC, has_second_scales=True),
}


@dataclass(frozen=True)
class ModelSlimLinear:
    """One quantized linear layer."""

    layer: str
    shape: tuple[int, int]
    kind: str
    group_size: int | None
    is_packed: bool
    source: StoredTensors

    @cached_property
    def scheme(self) -> StoredScheme:
        """See QuantizedLinear; the first rows' offsets tell whether it is symmetric.

        Where it is not, all are looked at: the tool lets a zero point lie where no code is.
        """
        found = TYPES[self.kind]
        name = f"{self.layer}.weight_offset" + ("_second" if found.has_second_scales else "")
        offsets = checks.peek(self.source, name, self.tensors)
        is_symmetric = offsets is None or not offsets[:_PEEKED_ROWS].any()
        return StoredScheme(
            found.bits,
            self.group_size,
            is_symmetric,
            has_far_zeros=offsets is not None
            and not is_symmetric
            and not checks.are_codes(offsets, found.bits),
            activation=found.activation,
            static_input=self._peek_static_input() if found.is_static else None,
            label=self.kind,
        )

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear."""
        found, (num_rows, num_columns) = TYPES[self.kind], self.shape
        groups = checks.count_groups(self.layer, num_columns, self.group_size)
        specs = {"weight": TensorSpec(self._weight_shape(), ("int8",))}
        rows = (num_rows,)
        if self._has_weight_scales:
            by_group = (num_rows, 1 if found.has_second_scales else groups)
            for name in ("weight_scale", "weight_offset"):
                is_flat = by_group[1] == 1 and self._shape_of(name) == rows
                specs[name] = TensorSpec(rows if is_flat else by_group, _FLOAT_TYPES)
        if found.has_second_scales:
            specs |= {
                "weight_scale_second": TensorSpec((num_rows, groups), _FLOAT_TYPES),
                "weight_offset_second": TensorSpec((num_rows, groups), ("int64", *_FLOAT_TYPES)),
                "scale_bias": TensorSpec((num_rows, self._count_biases()), _FLOAT_TYPES),
            }
        if found.is_static:
            specs["input_scale"] = TensorSpec((1,), _FLOAT_TYPES)
            specs["input_offset"] = TensorSpec((1,), _NUMBERS)
            specs["quant_bias"] = TensorSpec(rows, ("int32",))
            # int64 where the model is float16: the bits of a float32 in the lower half.
            specs["deq_scale"] = TensorSpec(rows, ("int64", "float32"))
        return {f"{self.layer}.{name}": spec for name, spec in specs.items()}

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear."""
        taken, groups = checks.group_of_columns(columns, self.group_size)
        lines = slice(rows.start, rows.stop)
        return QuantizedRows(
            self._read_codes(stored[f"{self.layer}.weight"], rows, columns),
            self._read_scales(stored, lines, taken),
            self._read_zeros(stored, lines, taken),
            groups,
        )

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear."""
        if not TYPES[self.kind].is_static:
            return None
        lines = slice(rows.start, rows.stop)
        scale = checks.as_scales(self._get(stored, "input_scale"), f"{self.layer}.input_scale")
        return StaticActivation(
            float(scale[0]),
            checks.as_offset(self._get(stored, "input_offset"), f"{self.layer}.input_offset"),
            self._get(stored, "quant_bias")[lines],
            self._read_deq_scale(stored)[lines],
            contains_bias=True,
        )

    @property
    def _has_weight_scales(self) -> bool:
        known = TYPES[self.kind].has_weight_scales
        names = (f"{self.layer}.weight_scale", f"{self.layer}.weight_offset")
        return any(name in self.source.entries for name in names) if known is None else known

    def _shape_of(self, name: str) -> tuple[int, ...] | None:
        entry = self.source.entries.get(f"{self.layer}.{name}")
        return None if entry is None else entry.shape

    def _count_biases(self) -> int:
        """One, or one for each of 16 ranks where cards split columns; none is used here."""
        shape = self._shape_of("scale_bias")
        return _NUM_RANKS if shape is not None and shape[1:] == (_NUM_RANKS,) else 1

    def _peek_static_input(self) -> StaticInput | None:
        return checks.peek_static_input(
            self.source,
            self.tensors,
            f"{self.layer}.input_scale",
            f"{self.layer}.input_offset",
            contains_bias=True,
        )

    def _get(self, stored: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        return stored[f"{self.layer}.{name}"]

    @property
    def _is_packed_int4(self) -> bool:
        return self.is_packed and TYPES[self.kind].bits == 4

    @property
    def _packs_rows(self) -> bool:
        """int4 by groups is packed along the outputs, by rows along the inputs."""
        return self._is_packed_int4 and self.group_size is not None

    def _weight_shape(self) -> tuple[int, int]:
        num_rows, num_columns = self.shape
        if not self._is_packed_int4:
            return self.shape
        if (num_rows if self._packs_rows else num_columns) % 2:
            raise CheckpointError(
                f"{self.layer} is {num_rows} by {num_columns}, which int4 in pairs cannot be."
            )
        return (num_rows // 2, num_columns) if self._packs_rows else (num_rows, num_columns // 2)

    def _read_codes(self, weight: np.ndarray, rows: range, columns: range) -> np.ndarray:
        if not self._is_packed_int4:
            codes = weight[rows.start : rows.stop, columns.start : columns.stop]
            if TYPES[self.kind].bits == 4:
                checks.check_int4(codes, f"{self.layer}.weight")
            return codes
        if self._packs_rows:
            pairs = packing.aligned(rows, 2)
            words = weight[pairs.start : pairs.stop, columns.start : columns.stop]
            values = packing.unpack_rows(words, 4)[packing.trim(rows, 2)]
        else:
            pairs = packing.aligned(columns, 2)
            words = weight[rows.start : rows.stop, pairs.start : pairs.stop]
            values = packing.unpack(words, 4)[:, packing.trim(columns, 2)]
        return packing.as_signed(np.ascontiguousarray(values), 4)

    def _read_scales(
        self, stored: Mapping[str, np.ndarray], lines: slice, taken: slice
    ) -> np.ndarray:
        found = TYPES[self.kind]
        if not self._has_weight_scales:  # only their product with the input's is there
            scale = checks.as_scales(self._get(stored, "input_scale"), f"{self.layer}.input_scale")
            return (self._read_deq_scale(stored)[lines] / scale[0])[:, None]
        name = f"{self.layer}.weight_scale"
        whole = _by_row(stored[name])[lines]
        scales = checks.as_scales(whole if found.has_second_scales else whole[:, taken], name)
        if found.has_second_scales:
            name = f"{self.layer}.weight_scale_second"
            second = checks.as_scales(stored[name][lines, taken], name)
            scales = checks.as_scales(scales * second, f"{name} times {self.layer}.weight_scale")
        return scales

    def _read_zeros(
        self, stored: Mapping[str, np.ndarray], lines: slice, taken: slice
    ) -> np.ndarray | None:
        found = TYPES[self.kind]
        if not self._has_weight_scales:
            return None
        name = f"{self.layer}.weight_offset"
        if found.has_second_scales:
            if checks.as_zeros(stored[name][lines], name) is not None:
                raise CheckpointError(
                    f"{name} is not zero, which W4A8 by two scales cannot be: quantize or download "
                    "the model again."
                )
            name += "_second"
        return checks.as_zeros(_by_row(stored[name])[lines, taken], name)

    def _read_deq_scale(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        return checks.as_deq_scales(self._get(stored, "deq_scale"), f"{self.layer}.deq_scale")


def _by_row(values: np.ndarray) -> np.ndarray:
    """[rows, groups] of one for each row, which may have no second axis."""
    return values[:, None] if values.ndim == 1 else values
