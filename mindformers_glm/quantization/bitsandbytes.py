"""bitsandbytes as transformers saves it: LLM.int8() by rows, and nf4 or fp4 by blocks.

int8: W = weight * SCB / 127 for each row. Activations, which its own runtime rounds too but for
outliers, stay as they are here. 4 bits: of two values in a byte the upper one comes first; a value
is the entry of quant_map that its code names, times absmax of its block of consecutive elements,
row after row. With double quantization absmax is a code itself: nested_quant_map by it, times
nested_absmax of its own block, plus nested_offset.
Sources: `QuantState` of bitsandbytes 0.50 (functional.py) and folders that it wrote on the CPU,
compared by hand with what it dequantizes; QLoRA, Dettmers et al. 2023, arXiv:2305.14314.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import (
    QuantizedLinear,
    QuantizedRows,
    StaticActivation,
    StoredScheme,
    StoredTensors,
    TensorSpec,
)
from mindformers_glm.quantization import checks, packing
from mindformers_glm.quantization.plain_format import PlainFormat

_SCALE_TYPES = ("float32", "float16", "bfloat16")
_KINDS = ("nf4", "fp4")
_STATE = "weight.quant_state.bitsandbytes__"
_LARGEST_STATE = 10_000  # bytes of JSON; 170 are usual
_LARGEST_CODE = np.float32(127)


@dataclass(frozen=True)
class BitsAndBytesFormat(PlainFormat):
    """quantization_config with quant_method bitsandbytes."""

    source: StoredTensors

    @property
    def tool(self) -> str:
        """See CheckpointFormat."""
        return "bitsandbytes"

    def linear(self, layer: str, shape: tuple[int, int]) -> QuantizedLinear | None:
        """See CheckpointFormat; the tensors tell which layers are quantized, and how."""
        names = self.source.entries
        weight = names.get(f"{layer}.weight")
        stored_as = None if weight is None else weight.dtype
        if f"{layer}.SCB" in names or stored_as == "int8":
            return Int8Linear(layer, shape, self.source)
        if f"{layer}.weight.absmax" in names or stored_as == "uint8":
            return FourBitLinear(layer, shape, self._read_state(layer, shape), self.source)
        return None

    def _read_state(self, layer: str, shape: tuple[int, int]) -> "BlockSettings":
        names = [name for kind in _KINDS if (name := f"{layer}.{_STATE}{kind}") in self._names]
        if len(names) != 1:
            raise CheckpointError(
                f"{layer} has {len(names)} tensors {_STATE}nf4 or fp4, expected one: the weight "
                "files are not complete, download them again."
            )
        entry = self._names[names[0]]
        if entry.dtype != "uint8" or len(entry.shape) != 1 or entry.shape[0] > _LARGEST_STATE:
            raise CheckpointError(f"{names[0]} is not JSON in bytes: download the file again.")
        return _parse_state(names[0], self.source.array(names[0]).tobytes(), shape)

    @property
    def _names(self) -> Mapping[str, Any]:
        return self.source.entries


@dataclass(frozen=True)
class Int8Linear:
    """One layer of LLM.int8()."""

    layer: str
    shape: tuple[int, int]
    source: StoredTensors

    scheme = StoredScheme(8)

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear."""
        specs = {
            f"{self.layer}.weight": TensorSpec(self.shape, ("int8",)),
            f"{self.layer}.SCB": TensorSpec(self.shape[:1], _SCALE_TYPES),
        }
        order = self.source.entries.get(f"{self.layer}.weight_format")
        if order is not None:
            shape = order.shape if order.shape in ((), (1,)) else ()
            specs[f"{self.layer}.weight_format"] = TensorSpec(shape, ("uint8",))
        return specs

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear."""
        order = stored.get(f"{self.layer}.weight_format")
        if order is not None and order.reshape(-1)[0] != 0:
            raise UnsupportedError(
                f"{self.layer}.weight_format is {int(order.reshape(-1)[0])}, expected 0, rows: "
                "save the model again with a later bitsandbytes, or use the float checkpoint."
            )
        codes = stored[f"{self.layer}.weight"][rows.start : rows.stop]
        scales = self._read_scales(stored, rows, codes)
        taken = codes[:, columns.start : columns.stop]
        return QuantizedRows(taken, scales[:, None], None, np.zeros(len(columns), np.intp))

    def _read_scales(
        self, stored: Mapping[str, np.ndarray], rows: range, codes: np.ndarray
    ) -> np.ndarray:
        """float32 [rows]; a row of zeros has the largest magnitude 0, and any scale will do."""
        name = f"{self.layer}.SCB"
        largest = stored[name][rows.start : rows.stop].astype(np.float32)
        empty = largest == 0
        if empty.any() and not codes[empty].any():
            largest[empty] = 1
        return checks.as_scales(largest, name) / _LARGEST_CODE

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear."""
        return None


@dataclass(frozen=True)
class BlockSettings:
    """What a layer's quant_state says.

    block_size: consecutive elements, row after row, that share a scale.
    nested_block_size: scales that share a scale; None: they are numbers themselves.
    """

    kind: str
    block_size: int
    nested_block_size: int | None = None
    nested_offset: float = 0.0


@dataclass(frozen=True)
class FourBitLinear:
    """One layer of nf4 or fp4."""

    layer: str
    shape: tuple[int, int]
    settings: BlockSettings
    source: StoredTensors

    @property
    def scheme(self) -> StoredScheme:
        """See QuantizedLinear; values are not evenly spaced, so that there are no integers."""
        label = self.settings.kind.upper()
        return StoredScheme(4, self._group_size, has_float_codes=True, label=label)

    @property
    def _group_size(self) -> int:
        """Columns that always lie in one block, as blocks may end within a row."""
        return math.gcd(self.shape[1], self.settings.block_size)

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear."""
        num_rows, num_columns = self.shape
        if num_columns % 2:
            raise CheckpointError(
                f"{self.layer} is {num_rows} by {num_columns}, which rows of pairs cannot be."
            )
        settings, state = self.settings, f"{_STATE}{self.settings.kind}"
        num_blocks = -(-num_rows * num_columns // settings.block_size)
        is_nested = settings.nested_block_size is not None
        length = self.source.entries[f"{self.layer}.{state}"].shape
        specs = {
            "weight": TensorSpec((num_rows * num_columns // 2, 1), ("uint8",)),
            "weight.quant_map": TensorSpec((16,), ("float32",)),
            "weight.absmax": TensorSpec((num_blocks,), ("uint8" if is_nested else "float32",)),
            state: TensorSpec(length, ("uint8",)),
        }
        if settings.nested_block_size is not None:
            count = -(-num_blocks // settings.nested_block_size)
            specs["weight.nested_absmax"] = TensorSpec((count,), ("float32",))
            specs["weight.nested_quant_map"] = TensorSpec((256,), ("float32",))
        return {f"{self.layer}.{name}": spec for name, spec in specs.items()}

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear."""
        pairs = stored[f"{self.layer}.weight"].reshape(self.shape[0], -1)
        wanted = packing.aligned(columns, 2)
        taken = pairs[rows.start : rows.stop, wanted.start : wanted.stop]
        codes = packing.unpack(packing.swap_nibbles(taken), 4)[:, packing.trim(columns, 2)]
        which, groups = checks.group_of_columns(columns, self._group_size)
        values = self._get_map(stored, "quant_map")[codes]
        return QuantizedRows(values, self._read_scales(stored, rows, which), None, groups)

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear."""
        return None

    def _read_scales(
        self, stored: Mapping[str, np.ndarray], rows: range, which: slice
    ) -> np.ndarray:
        """float32 [rows, groups]; 0 where a block is all zeros."""
        first = np.arange(rows.start, rows.stop)[:, None] * self.shape[1]
        first = first + np.arange(which.start, which.stop) * self._group_size
        blocks = first // self.settings.block_size
        absmax = stored[f"{self.layer}.weight.absmax"][blocks]
        if self.settings.nested_block_size is None:
            scales = absmax
        else:
            nested = self._get(stored, "nested_absmax")[blocks // self.settings.nested_block_size]
            scales = self._get_map(stored, "nested_quant_map")[absmax] * nested
            scales = scales + np.float32(self.settings.nested_offset)
        if not np.isfinite(scales).all():
            raise self._not_numbers("absmax")
        return np.asarray(scales, np.float32)

    def _get_map(self, stored: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        values = self._get(stored, name)
        largest = float(np.abs(values).max())
        if not 0 < largest <= 1:
            raise CheckpointError(
                f"{self.layer}.weight.{name} has {largest:.3g} for its largest value, expected the "
                "values that codes mean, of -1 to 1: quantize or download the model again."
            )
        return values

    def _get(self, stored: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        values = stored[f"{self.layer}.weight.{name}"]
        if not np.isfinite(values).all():
            raise self._not_numbers(name)
        return values

    def _not_numbers(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self.layer}.weight.{name} holds what is no number: quantize or download the model "
            "again."
        )


def open_format(config: Mapping[str, Any], where: str, source: StoredTensors) -> BitsAndBytesFormat:
    """Check quantization_config; what is quantized how, the tensors say.

    Raises:
        UnsupportedError: the bytes of 4-bit weights are stored as numbers of another type.
        CheckpointError: no tensor is quantized: the tool quantizes while it loads.
    """
    storage = config.get("bnb_4bit_quant_storage") or "uint8"
    if storage != "uint8":
        raise UnsupportedError(
            f"{where} has bnb_4bit_quant_storage {storage!r:.40}, expected uint8: save the model "
            "again with that, or use the float checkpoint."
        )
    if not any(name.endswith((".SCB", ".weight.absmax")) for name in source.entries):
        raise CheckpointError(
            f"{where} says bitsandbytes, but no tensor is quantized by it: the weights are float, "
            "remove quantization_config from it."
        )
    return BitsAndBytesFormat(source)


def _parse_state(name: str, content: bytes, shape: tuple[int, int]) -> BlockSettings:
    try:
        raw = json.loads(content)
        kind, block_size, stored = raw["quant_type"], raw["blocksize"], raw["shape"]
        nested, offset = raw.get("nested_blocksize"), raw.get("nested_offset", 0.0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{name} is not what bitsandbytes writes there: download the file again."
        ) from None
    if stored != list(shape):
        raise CheckpointError(
            f"{name} says shape {stored!r:.60}, expected {list(shape)}: the file is of another "
            "model."
        )
    sizes = [block_size] if nested is None else [block_size, nested]
    is_sound = (
        kind in _KINDS
        and name.endswith(kind)
        and all(type(size) is int and size > 0 for size in sizes)
        and isinstance(offset, int | float)
        and math.isfinite(offset)
    )
    if not is_sound:
        raise CheckpointError(
            f"{name} says {kind!r:.20} in blocks of {block_size!r:.20} and {nested!r:.20} with "
            f"offset {offset!r:.30}, which cannot be: download the file again."
        )
    return BlockSettings(kind, block_size, nested, float(offset))
