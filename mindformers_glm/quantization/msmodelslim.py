"""msModelSlim's folders: safetensors and a description that names the type of every tensor.

Two layouts. New ("ascendV1"): quant_model_description.json with a version, int4 packed two to a
byte. Old ("safe_tensor"): quant_model_description_TYPE.json without one, int4 a byte each. Source:
outputs of msModelSlim 26.1.0, looked at and compared with its own logits; W8A8_MIX and
W4A8_DYNAMIC by the description of their tensors alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import (
    FLOAT,
    QuantizedLinear,
    StoredTensors,
    TensorHeader,
)
from mindformers_glm.quantization.kv_scales import list_kv_scales
from mindformers_glm.quantization.msmodelslim_linear import TYPES, ModelSlimLinear, TensorType
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
        kind = TYPES.get(self.types[f"{part}.weight"])
        if not self.is_packed or kind is None or kind.bits != 4 or len(entry.shape) != 2:
            return entry.shape
        num_rows, num_columns = entry.shape
        by_rows = self.group_size is not None
        return (2 * num_rows, num_columns) if by_rows else (num_rows, 2 * num_columns)

    def _whole(self, layer: str, shape: tuple[int, int]) -> ModelSlimLinear | None:
        kind = self.types.get(f"{layer}.weight", "FLOAT")
        if kind == "FLOAT":
            return None
        if kind not in TYPES:
            raise UnsupportedError(
                f"{layer} is {kind} by {self.file.name}, which is not one of {', '.join(TYPES)}, "
                "FLOAT."
            )
        size = self._group_size_of(layer, shape[1], TYPES[kind])
        return ModelSlimLinear(layer, shape, kind, size, self.is_packed, self.source)

    def _group_size_of(self, layer: str, num_columns: int, kind: TensorType) -> int | None:
        """Groups of int8 are told by the scales: most folders have them by rows."""
        if kind.bits == 4:
            return self.group_size
        scales = self.source.entries.get(f"{layer}.weight_scale")
        if kind.activation != FLOAT or scales is None or len(scales.shape) != 2:
            return None
        groups = scales.shape[1]
        return (self.group_size or max(num_columns // groups, 1)) if groups > 1 else None

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
        if isinstance(kind, str) and kind in TYPES and TYPES[kind].bits == 4:
            layer = name.removesuffix(".weight")
            second = f"{layer}.weight_scale_second"
            scales = names.get(second) or names.get(f"{layer}.weight_scale")
            if layer == name or scales is None:
                continue
            columns, groups = names[name].shape[-1], scales.shape[-1]
            if groups > 1:
                return columns // groups
    return None
