"""GPTQ and AWQ as Hugging Face loads them: qweight, qzeros, scales, g_idx.

A linear layer W [out, in] is stored transposed. GPTQ packs along the inputs and, in version 1,
stores zero points less one; AWQ's "gemm" packs along the outputs in an order of its own. W = (q -
zero) * scale, q and zero without sign.
Sources: AutoGPTQ 0.7.1 `qlinear_cuda_old.py`, AutoAWQ 0.2 `packing_utils.py`, as described;
compared with what msModelSlim's converters write.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
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

_SCALE_TYPES = ("float16", "float32", "bfloat16")
_BITS = (2, 4, 8)
# Settings that make tensors mean something else, and their values that do not.
_NEUTRAL: Mapping[str, tuple[str, ...]] = {
    "is_marlin_format": (),
    "pack_dtype": ("int32",),
    "rotation": (),
    "adapter": (),
    "backend": ("autoawq", "auto"),
}


@dataclass(frozen=True)
class WordSettings:
    """The settings of one layer.

    group_size: None: the whole row.
    is_awq: packed along the outputs, in AWQ_ORDER.
    zero_shift: what is added to stored zero points.
    needs_order: columns were grouped by their activations (desc_act): only a g_idx tells how.
    """

    bits: int
    group_size: int | None
    is_awq: bool
    zero_shift: int
    needs_order: bool

    @property
    def per_word(self) -> int:
        """Values in an int32."""
        return 32 // self.bits


@dataclass(frozen=True)
class WordFormat(PlainFormat):
    """Hugging Face's quantization_config with quant_method gptq or awq.

    dynamic: GPTQModel's overrides: a regular expression -> settings; "-:" before it: float.
    """

    settings: WordSettings
    dynamic: Mapping[str, Mapping[str, Any]]
    source: StoredTensors

    @property
    def tool(self) -> str:
        """See CheckpointFormat."""
        if self.settings.is_awq:
            return "AWQ (gemm)"
        return f"GPTQ (version {1 if self.settings.zero_shift else 2})"

    def linear(self, layer: str, shape: tuple[int, int]) -> "WordLinear | None":
        """See CheckpointFormat; the layers that are quantized are those with packed weights."""
        if f"{layer}.qweight" not in self.source.entries:
            return None
        return WordLinear(layer, shape, self._settings_of(layer), self.source)

    def _settings_of(self, layer: str) -> WordSettings:
        for pattern, changes in self.dynamic.items():
            if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), layer):
                bits = changes.get("bits", self.settings.bits)
                size = changes.get("group_size", self.settings.group_size or -1)
                has_order = changes.get("desc_act", self.settings.needs_order)
                awq, shift = self.settings.is_awq, self.settings.zero_shift
                return _make_settings(bits, size, awq, shift, has_order)
        return self.settings

    def zeros(self) -> Mapping[str, str]:
        """See CheckpointFormat; some tools give every packed layer a bias."""
        names = self.source.entries
        layers = [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
        return {f"{layer}.bias": "an empty bias" for layer in layers if f"{layer}.bias" in names}


@dataclass(frozen=True)
class WordLinear:
    """One quantized linear layer."""

    layer: str
    shape: tuple[int, int]
    settings: WordSettings
    source: StoredTensors

    @property
    def has_order(self) -> bool:
        """Whether the tool wrote a g_idx, which most do even where it only counts up."""
        return f"{self.layer}.g_idx" in self.source.entries

    @cached_property
    def scheme(self) -> StoredScheme:
        """See QuantizedLinear; the first zero points and g_idx tell more than the settings do."""
        settings, size = self.settings, self.settings.group_size
        zeros = checks.peek(self.source, f"{self.layer}.qzeros", self.tensors)
        order = checks.peek(self.source, f"{self.layer}.g_idx", self.tensors)
        is_symmetric = zeros is not None and bool(
            (self._read_zeros(zeros[:1], range(self.shape[0])) == 2 ** (settings.bits - 1)).all()
        )
        is_reordered, column_order = checks.read_order(order, size)
        return StoredScheme(
            settings.bits, size, is_symmetric, is_reordered=is_reordered, column_order=column_order
        )

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear."""
        num_rows, num_columns = self.shape
        groups = checks.count_groups(self.layer, num_columns, self.settings.group_size)
        words, is_awq = self.settings.per_word, self.settings.is_awq
        if num_rows % words or num_columns % words:
            raise CheckpointError(
                f"{self.layer} is {num_rows} by {num_columns}, which words of {words} values "
                "cannot be: the quantization's settings are of another model."
            )
        weight = (num_columns, num_rows // words) if is_awq else (num_columns // words, num_rows)
        specs = {
            "qweight": TensorSpec(weight, ("int32",)),
            "qzeros": TensorSpec((groups, num_rows // words), ("int32",)),
            "scales": TensorSpec((groups, num_rows), _SCALE_TYPES),
        }
        if self.has_order or (self.settings.needs_order and self.settings.group_size):
            specs["g_idx"] = TensorSpec((num_columns,), ("int32", "int64"))
        return {f"{self.layer}.{name}": spec for name, spec in specs.items()}

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear."""
        taken, groups = self._find_groups(stored, columns)
        lines = slice(rows.start, rows.stop)
        name = f"{self.layer}.scales"
        scales = checks.as_scales(stored[name][taken, lines], name).T
        zeros = self._read_zeros(stored[f"{self.layer}.qzeros"][taken], rows)
        # Without sign as stored; codes are signed, so the middle of their range is taken off both.
        middle = 2 ** (self.settings.bits - 1)
        codes = self._read_values(stored[f"{self.layer}.qweight"], rows, columns)
        zeros = zeros.T.astype(np.float32) - middle
        return QuantizedRows(
            (codes - np.uint8(middle)).view(np.int8),
            np.ascontiguousarray(scales),
            np.ascontiguousarray(zeros) if zeros.any() else None,
            groups,
        )

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear."""
        return None

    def _find_groups(
        self, stored: Mapping[str, np.ndarray], columns: range
    ) -> tuple[slice, np.ndarray]:
        if not self.has_order:
            return checks.group_of_columns(columns, self.settings.group_size)
        name = f"{self.layer}.g_idx"
        num_groups = self.tensors[f"{self.layer}.scales"].shape[0]
        return checks.groups_by_order(stored[name], name, columns, num_groups)

    def _read_zeros(self, words: np.ndarray, rows: range) -> np.ndarray:
        """uint8 [groups, rows]; along the outputs in both formats."""
        values = self._unpack_rows(words, rows)
        # Version 1 takes one off in the width of the field: a zero point of 0 is stored as 15.
        return values + np.uint8(self.settings.zero_shift) & np.uint8(2**self.settings.bits - 1)

    def _unpack_rows(self, words: np.ndarray, rows: range) -> np.ndarray:
        per_word = self.settings.per_word
        wanted = packing.aligned(rows, per_word)
        order = packing.AWQ_ORDER if self.settings.is_awq else None
        values = packing.unpack(words[:, wanted.start : wanted.stop], self.settings.bits, order)
        return values[:, packing.trim(rows, per_word)]

    def _read_values(self, words: np.ndarray, rows: range, columns: range) -> np.ndarray:
        """uint8 [rows, columns]."""
        if self.settings.is_awq:
            values = self._unpack_rows(words[columns.start : columns.stop], rows)
            return np.ascontiguousarray(values.T)
        per_word = self.settings.per_word
        wanted = packing.aligned(columns, per_word)
        taken = words[wanted.start : wanted.stop, rows.start : rows.stop]
        values = packing.unpack(np.ascontiguousarray(taken.T), self.settings.bits)
        return np.ascontiguousarray(values[:, packing.trim(columns, per_word)])


def open_format(raw: Mapping[str, Any], where: str, source: StoredTensors) -> WordFormat:
    """Read quantization_config, or the quantize_config.json of older tools.

    Raises:
        CheckpointError: a setting is not what it must be.
        UnsupportedError: a variant that this version does not read.
    """
    is_awq = raw.get("quant_method") == "awq"
    named = (raw.get(key) for key in ("checkpoint_format", "format", "version"))
    usual = "gemm" if is_awq else "gptq"
    layout = str(next((name for name in named if name is not None), usual)).lower()
    wanted = ("gemm",) if is_awq else ("gptq", "gptq_v2")
    if layout not in wanted:
        raise UnsupportedError(
            f"{where} has the layout {layout!r:.40}, expected "
            f"{'gemm' if is_awq else 'gptq or gptq_v2'}: convert the checkpoint to that."
        )
    for key, neutral in _NEUTRAL.items():
        if (value := raw.get(key)) not in (None, False, *neutral):
            raise UnsupportedError(
                f"{where} has {key} {value!r:.60}, which this version does not read: quantize the "
                "model anew without it."
            )
    bits = raw.get("bits", raw.get("w_bit"))
    size = raw.get("group_size", raw.get("q_group_size", -1))
    shift = 0 if is_awq or layout == "gptq_v2" else 1
    # static_groups: groups of neighbours, whatever order the columns were rounded in.
    has_order = raw.get("desc_act") if not is_awq and not raw.get("static_groups") else None
    try:
        settings = _make_settings(bits, size, is_awq, shift, has_order)
    except (CheckpointError, UnsupportedError) as problem:
        raise type(problem)(f"{where}: {problem}") from None
    dynamic = raw.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(v, dict) for v in dynamic.values()):
        raise CheckpointError(f"{where} has {dynamic!r:.60} for dynamic, expected an object.")
    checks.check_patterns((name.removeprefix("+:").removeprefix("-:") for name in dynamic), where)
    if not any(name.endswith(".qweight") for name in source.entries):
        raise CheckpointError(
            f"{where} says {raw.get('quant_method')}, but no tensor is a qweight."
        )
    return WordFormat(settings, dynamic, source)


def _make_settings(bits: Any, size: Any, is_awq: bool, shift: int, has_order: Any) -> WordSettings:
    if type(bits) is not int or bits not in _BITS or (is_awq and bits != 4):
        raise UnsupportedError(
            f"bits are {bits!r:.40}, expected {'4' if is_awq else '2, 4 or 8'}: quantize the "
            "model anew with that."
        )
    if type(size) is not int or not (size == -1 or size > 0):
        raise CheckpointError(f"group_size is {size!r:.40}, expected -1 or a positive number.")
    if has_order not in (None, False, True):
        raise CheckpointError(f"desc_act is {has_order!r:.40}, expected true or false.")
    return WordSettings(bits, None if size == -1 else size, is_awq, shift, bool(has_order))
