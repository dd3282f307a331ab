"""msModelSlim's folders: safetensors and a description that names the type of every tensor.

Two layouts. New ("ascendV1"): quant_model_description.json with a version, int4 packed two to a
byte. Old ("safe_tensor"): quant_model_description_TYPE.json without one, int4 a byte each. Source:
outputs of msModelSlim 26.1.0, looked at and compared with its own logits; W8A8_MIX and
W4A8_DYNAMIC by the description of their tensors alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import (
    DYNAMIC,
    FLOAT,
    MIXED,
    STATIC,
    QuantizedLinear,
    QuantizedRows,
    StaticActivation,
    StaticInput,
    StoredScheme,
    StoredTensors,
    TensorHeader,
    TensorSpec,
)
from mindformers_glm.quantization import checks, packing
from mindformers_glm.quantization.kv_scales import list_kv_scales
from mindformers_glm.quantization.shifted_norms import (
    find_norm_bias,
    list_norm_biases,
    list_norm_copies,
)
from mindformers_glm.quantization.tp_list import (
    count_parts,
    join_parts,
    list_unused,
    part_shapes,
)
from mindformers_glm.system.files import read_json_object

_KEYS = {  # of a description, besides tensors
    *("model_quant_type", "version", "group_size", "kv_cache_type", "kv_quant_type"),
    *("fa_quant_type", "reduce_quant_type", "metadata", "optional"),
}
_C8 = "C8"
_PEEKED_ROWS = 16
_NUM_RANKS = 16  # of W4A8's biases
_FLOAT_TYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class _Type:
    """A type of the description: bits of a weight, and what else lies beside it."""

    bits: int
    activation: str = FLOAT
    has_weight_scales: bool = True
    has_second_scales: bool = False

    @property
    def is_static(self) -> bool:
        return self.activation in (STATIC, MIXED)


_TYPES = {
    "W8A8": _Type(8, STATIC),
    "W8A8_MIX": _Type(8, MIXED),
    "W8A8S": _Type(8, STATIC, has_weight_scales=False),
    "W8A8_DYNAMIC": _Type(8, DYNAMIC),
    "W8A16": _Type(8),
    "W4A16": _Type(4),
    "W4A8_DYNAMIC": _Type(4, DYNAMIC, has_second_scales=True),
}
_COMPRESSED = "w8a8sc"


@dataclass(frozen=True)
class ModelSlimFormat:
    """A description and what follows from it."""

    file: Path
    types: Mapping[str, str]
    group_size: int | None
    is_packed: bool
    source: StoredTensors
    kv_cache_type: str | None = None

    @property
    def tool(self) -> str:
        """See CheckpointFormat."""
        return f"msModelSlim, {'new' if self.is_packed else 'old'} layout"

    def linear(self, layer: str, shape: tuple[int, int]) -> QuantizedLinear | None:
        """See CheckpointFormat; parts for each rank (tp_list) are of the columns."""
        count = count_parts(layer, self.types)
        if count == 0:
            return self._whole(layer, shape)
        names = [f"{layer}.tp_list.{rank}" for rank in range(count)]
        shapes = part_shapes(layer, names, shape, self._columns_of)
        parts = [self._whole(*part) for part in zip(names, shapes, strict=True)]
        return join_parts(layer, names, shapes, parts)

    def _columns_of(self, part: str) -> tuple[int, ...]:
        """The shape of a part, in values."""
        entry = self.source.entries[f"{part}.weight"]
        kind = _TYPES.get(self.types[f"{part}.weight"])
        if not self.is_packed or kind is None or kind.bits != 4 or len(entry.shape) != 2:
            return entry.shape
        num_rows, num_columns = entry.shape
        by_rows = self.group_size is not None
        return (2 * num_rows, num_columns) if by_rows else (num_rows, 2 * num_columns)

    def _whole(self, layer: str, shape: tuple[int, int]) -> "ModelSlimLinear | None":
        kind = self.types.get(f"{layer}.weight", "FLOAT")
        if kind == "FLOAT":
            return None
        if kind not in _TYPES:
            raise UnsupportedError(
                f"{layer} is {kind} by {self.file.name}, which is not one of {', '.join(_TYPES)}, "
                "FLOAT."
            )
        group_size = self.group_size if _TYPES[kind].bits == 4 else None
        return ModelSlimLinear(layer, shape, kind, group_size, self.is_packed, self.source)

    def surplus(self) -> Mapping[str, str]:
        """See CheckpointFormat."""
        scales = list_kv_scales(self.types)
        return scales | list_norm_copies(self.types, self.source) | list_unused(self.types)

    @property
    def has_kv_scales(self) -> bool:
        """See CheckpointFormat; the old layout's description does not say it by itself."""
        return self.kv_cache_type == _C8 or bool(list_kv_scales(self.types))

    def zeros(self) -> Mapping[str, str]:
        """See CheckpointFormat."""
        return list_norm_biases(self.types, self.source)

    def repeats(self, name: str) -> tuple[str, ...]:
        """See CheckpointFormat; the old layout keeps norms of anti-outlier under two names."""
        copy = re.sub(r"norm\.weight$", "norm.module.weight", name)
        return (copy,) if copy != name and copy in self.types else ()

    def norm_bias(self, name: str) -> str | None:
        """See CheckpointFormat."""
        return find_norm_bias(name, self.source)


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
        found = _TYPES[self.kind]
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
        found, (num_rows, num_columns) = _TYPES[self.kind], self.shape
        groups = checks.count_groups(self.layer, num_columns, self.group_size)
        specs = {"weight": TensorSpec(self._weight_shape(), ("int8",))}
        one, rows = TensorSpec((1,), ("float32",)), (num_rows,)
        scale = TensorSpec((num_rows, 1 if found.has_second_scales else groups), _FLOAT_TYPES)
        if found.has_weight_scales:
            specs |= {"weight_scale": scale, "weight_offset": scale}
        if found.has_second_scales:
            specs |= {
                "weight_scale_second": TensorSpec((num_rows, groups), _FLOAT_TYPES),
                "weight_offset_second": TensorSpec((num_rows, groups), ("int64", *_FLOAT_TYPES)),
                "scale_bias": TensorSpec((num_rows, self._count_biases()), _FLOAT_TYPES),
            }
        if found.is_static:
            specs |= {"input_scale": one, "input_offset": one}
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
        if not _TYPES[self.kind].is_static:
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

    def _count_biases(self) -> int:
        """One, or one for each of 16 ranks where cards split columns; none is used here."""
        entry = self.source.entries.get(f"{self.layer}.scale_bias")
        return _NUM_RANKS if entry is not None and entry.shape[1:] == (_NUM_RANKS,) else 1

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
        return self.is_packed and _TYPES[self.kind].bits == 4

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
            if (
                _TYPES[self.kind].bits == 4
                and codes.size
                and not -8 <= codes.min() <= codes.max() <= 7
            ):
                raise CheckpointError(
                    f"{self.layer}.weight holds more than int4: download it again."
                )
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
        found = _TYPES[self.kind]
        if not found.has_weight_scales:  # W8A8S: only their product with the input's is there
            scale = checks.as_scales(self._get(stored, "input_scale"), f"{self.layer}.input_scale")
            return (self._read_deq_scale(stored)[lines] / scale[0])[:, None]
        name = f"{self.layer}.weight_scale"
        whole = stored[name][lines]
        scales = checks.as_scales(whole if found.has_second_scales else whole[:, taken], name)
        if found.has_second_scales:
            name = f"{self.layer}.weight_scale_second"
            second = checks.as_scales(stored[name][lines, taken], name)
            scales = checks.as_scales(scales * second, f"{name} times {self.layer}.weight_scale")
        return scales

    def _read_zeros(
        self, stored: Mapping[str, np.ndarray], lines: slice, taken: slice
    ) -> np.ndarray | None:
        found = _TYPES[self.kind]
        if not found.has_weight_scales:
            return None
        name = f"{self.layer}.weight_offset"
        if found.has_second_scales:
            if checks.as_zeros(stored[name][lines], name) is not None:
                raise CheckpointError(
                    f"{name} is not zero, which W4A8 by two scales cannot be: quantize or download "
                    "the model again."
                )
            name += "_second"
        return checks.as_zeros(stored[name][lines, taken], name)

    def _read_deq_scale(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        return checks.as_deq_scales(self._get(stored, "deq_scale"), f"{self.layer}.deq_scale")


def find_description(folder: Path) -> Path | None:
    """The description of a folder.

    Raises:
        CheckpointError: there are several.
    """
    found = sorted(folder.glob("quant_model_description*.json"))
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} has several descriptions ({', '.join(file.name for file in found)}): keep "
            "one model in the folder."
        )
    return found[0] if found else None


def refuse_compressed(folder: Path, *types: Any) -> None:
    """Refuse what a card's compressor has made of W8A8S.

    Args:
        types: what the folder's files say of the whole, and of tensors.
    Raises:
        UnsupportedError: one of them is W8A8SC.
    """
    if any(isinstance(kind, str) and kind.lower() == _COMPRESSED for kind in types):
        raise UnsupportedError(
            f"{folder} is W8A8SC, compressed for one kind of card in a format that is not public: "
            "take the W8A8S folder that it was made of."
        )


def open_format(file: Path, quantize: Any, source: StoredTensors) -> ModelSlimFormat:
    """Read a description and compare it with the tensors that are there.

    Args:
        quantize: of config.json, which --mindie_format writes; None where it is absent.
    Raises:
        CheckpointError: it is damaged, contradicts `quantize`, or does not name the tensors.
    """
    raw = read_json_object(file, CheckpointError)
    refuse_compressed(file.parent, quantize, raw.get("model_quant_type"), *raw.values())
    types = {name: kind for name, kind in raw.items() if name not in _KEYS}
    for name, kind in types.items():
        if not isinstance(kind, str):
            raise CheckpointError(f"{file} has no type for {name!r:.100}: copy it again.")
    whole = raw.get("model_quant_type")
    if not types or not isinstance(whole, str):
        raise CheckpointError(f"{file} has no model_quant_type or no tensors: copy it again.")
    if quantize is not None and str(quantize).lower() != whole.lower():
        raise CheckpointError(
            f"config.json says quantize {quantize!r:.40} and {file.name} says {whole}: the two are "
            "of different folders."
        )
    _compare_names(file, types, source.entries)
    is_packed = raw.get("version") is not None
    kv_cache_type = raw.get("kv_cache_type")
    if kv_cache_type not in (None, _C8):
        raise UnsupportedError(
            f"{file} has kv_cache_type {kv_cache_type!r:.40}, and this version reads {_C8}: "
            "quantize the model again with that, or without a quantized KV cache."
        )
    return ModelSlimFormat(
        file,
        types,
        _read_group_size(file, raw, source.entries),
        is_packed,
        source,
        kv_cache_type,
    )


def _compare_names(file: Path, types: Mapping[str, str], names: Mapping[str, TensorHeader]) -> None:
    lacking = [name for name in types if name not in names]
    unnamed = [name for name in names if name not in types]
    if lacking:
        raise CheckpointError(
            f"{file} names {lacking[0]!r:.150}, which is not in the folder"
            f"{_more(lacking)}: a weight file is missing or of another model."
        )
    if unnamed:
        raise CheckpointError(
            f"{file} does not name {unnamed[0]!r:.150}, which is in the folder{_more(unnamed)}: "
            "the description is cut off or of another model."
        )


def _more(names: list[str]) -> str:
    return f" (nor are {len(names) - 1} more)" if len(names) > 1 else ""


def _read_group_size(
    file: Path, raw: Mapping[str, Any], names: Mapping[str, TensorHeader]
) -> int | None:
    """What the description says; the old layout says nothing and the scales' shapes tell it."""
    size = raw.get("group_size") or None
    if size is not None and (type(size) is not int or size < 1):
        raise CheckpointError(f"{file} has group_size {size!r:.40}, expected a positive number.")
    if size is not None or raw.get("version") is not None:
        return size
    for name, kind in raw.items():
        if isinstance(kind, str) and kind in _TYPES and _TYPES[kind].bits == 4:
            layer = name.removesuffix(".weight")
            second = f"{layer}.weight_scale_second"
            scales = names.get(second) or names.get(f"{layer}.weight_scale")
            if layer == name or scales is None:
                continue
            columns, groups = names[name].shape[-1], scales.shape[-1]
            if groups > 1:
                return columns // groups
    return None
