"""The ChatGLM2 guide's .npy files: W8A8 or W8A8S with static activations, layer by layer.

weights/numpy_set.py gives their tensors the names of msModelSlim's later layouts and lays them over
the float checkpoint. Where the tool has saved a bias in place of a matrix, integers are made anew
of the float matrix by weight_scale; anti-outlier has multiplied its columns by what it has taken
off the norm before it. Source: both sets of msModelSlim 26.1.0, whose safetensors hold exactly the
integers that this gives, with anti-outlier and without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import (
    REPLACED,
    STATIC,
    QuantizedRows,
    StaticActivation,
    StoredScheme,
    StoredTensors,
    TensorSpec,
)
from mindformers_glm.quantization import checks
from mindformers_glm.quantization.kv_scales import list_kv_scales
from mindformers_glm.quantization.plain_format import PlainFormat
from mindformers_glm.quantization.shifted_norms import (
    find_norm_bias,
    list_norm_biases,
    list_norm_copies,
)

_FLOAT_TYPES = ("float32", "float16", "bfloat16")
_PARTS = ("deq_scale", "quant_bias", "input_scale", "input_offset", "weight_scale", "weight_offset")
_LARGEST = 127  # of an integer; the tool leaves -128 out


@dataclass(frozen=True)
class NumpySetFormat(PlainFormat):
    """What quant_weight.npy and its companions say."""

    source: StoredTensors

    @property
    def tool(self) -> str:
        """See CheckpointFormat."""
        return "msModelSlim, .npy files"

    def linear(self, layer: str, shape: tuple[int, int]) -> "NumpySetLinear | None":
        """See CheckpointFormat; quantized are the layers that any file but quant_weight names."""
        names = self.source.entries
        weight = names.get(f"{layer}.weight")
        is_named = any(f"{layer}.{part}" in names for part in _PARTS)
        if not is_named and (weight is None or weight.dtype != "int8"):
            return None
        if weight is None:
            raise CheckpointError(
                f"quant_weight.npy has no matrix of {layer}, in whose place the tool has saved its "
                "bias: put the .npy files beside the float checkpoint's weights, or let "
                "QUANT_WEIGHT_PATH name their folder."
            )
        return NumpySetLinear(layer, shape, self.source)

    def surplus(self) -> Mapping[str, str]:
        """See CheckpointFormat."""
        names = self.source.entries
        return list_kv_scales(names) | list_norm_copies(names, self.source)

    @property
    def has_kv_scales(self) -> bool:
        """See CheckpointFormat."""
        return bool(list_kv_scales(self.source.entries))

    def zeros(self) -> Mapping[str, str]:
        """See CheckpointFormat."""
        return list_norm_biases(self.source.entries, self.source)

    def norm_bias(self, name: str) -> str | None:
        """See CheckpointFormat."""
        return find_norm_bias(name, self.source)


@dataclass(frozen=True)
class NumpySetLinear:
    """One quantized linear layer."""

    layer: str
    shape: tuple[int, int]
    source: StoredTensors

    @cached_property
    def scheme(self) -> StoredScheme:
        """See QuantizedLinear."""
        offsets = checks.peek(self.source, f"{self.layer}.weight_offset", self.tensors)
        return StoredScheme(
            8,
            is_symmetric=offsets is None or not offsets.any(),
            activation=STATIC,
            static_input=checks.peek_static_input(
                self.source,
                self.tensors,
                f"{self.layer}.input_scale",
                f"{self.layer}.input_offset",
                contains_bias=True,
            ),
            label="W8A8" if self._has("weight_scale") else "W8A8S",
        )

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear; the float bias is among them, which integers are checked by."""
        num_rows, _ = self.shape
        one, numbers = self._spec("input_scale", (1,), ()), ("float32", "float16", "int32", "int64")
        specs = {
            "weight": TensorSpec(self.shape, _FLOAT_TYPES if self._is_lost else ("int8",)),
            "deq_scale": TensorSpec((num_rows,), ("int64", "float32")),
            "quant_bias": TensorSpec((num_rows,), ("int32",)),
            "input_scale": TensorSpec(one, _FLOAT_TYPES),
            "input_offset": TensorSpec(self._spec("input_offset", (1,), ()), numbers),
        }
        if self._has("weight_scale") or self._has("weight_offset"):
            by_row = ((num_rows, 1), (num_rows,))
            shape = self._spec("weight_scale", *by_row)
            specs["weight_scale"] = TensorSpec(shape, _FLOAT_TYPES)
            shape = self._spec("weight_offset", *by_row, (1, 1), (1,), ())
            specs["weight_offset"] = TensorSpec(shape, numbers)
        if self._has("bias"):
            specs["bias"] = TensorSpec((num_rows,), _FLOAT_TYPES)
        found = {f"{self.layer}.{name}": spec for name, spec in specs.items()}
        if self._is_lost and f"{self._norm}{REPLACED}" in self.source.entries:
            norm = TensorSpec((self.shape[1],), _FLOAT_TYPES)
            found |= {self._norm: norm, f"{self._norm}{REPLACED}": norm}
        return found

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear."""
        scales = self._read_scales(stored, rows)
        return QuantizedRows(
            self._read_codes(stored, scales, rows, columns),
            scales,
            self._read_zeros(stored, rows),
            np.zeros(len(columns), np.intp),
        )

    def read_activation(self, stored: Mapping[str, np.ndarray], rows: range) -> StaticActivation:
        """See QuantizedLinear; quant_bias is compared with the float bias that is in it."""
        lines = slice(rows.start, rows.stop)
        name = f"{self.layer}.input_offset"
        offset = checks.as_offset(stored[name], name)
        quant_bias = stored[f"{self.layer}.quant_bias"][lines].astype(np.int32)
        deq_scale = self._read_deq_scale(stored, rows)
        codes = self.read(stored, rows, range(self.shape[1])).codes
        bias = stored.get(f"{self.layer}.bias")
        own = np.zeros(len(rows)) if bias is None else bias[lines].astype(np.float64)
        correction = offset * codes.sum(axis=1, dtype=np.int32)
        quant_bias = self._check_bias(quant_bias, own / deq_scale, correction)
        scale = float(self._read_input_scale(stored))
        return StaticActivation(scale, offset, quant_bias, deq_scale, contains_bias=True)

    def _check_bias(
        self, quant_bias: np.ndarray, steps: np.ndarray, correction: np.ndarray
    ) -> np.ndarray:
        """int32 [rows]: as stored, or less the offset's part, which old tools left to the network.

        Args:
            steps: float64 [rows], the bias in steps of deq_scale.
            correction: the offset times the sum of each row's integers.
        """
        wanted = steps - correction
        if (np.abs(quant_bias - wanted) <= 1).all():
            return quant_bias
        if (np.abs(quant_bias - steps) <= 1).all():
            return np.rint(wanted).astype(np.int32)
        raise CheckpointError(
            f"{self.layer}.quant_bias is not its bias in steps of deq_scale less the input's "
            "offset: the .npy files are not all of one run of the tool, or the float checkpoint "
            "is not the one that they were made of."
        )

    @property
    def _is_lost(self) -> bool:
        """Whether the weight that is there is the float checkpoint's."""
        return self.source.entries[f"{self.layer}.weight"].dtype in _FLOAT_TYPES

    @property
    def _norm(self) -> str:
        """The norm whose output the layer multiplies; only such layers have a bias."""
        return f"{self.layer.rsplit('.', 2)[0]}.input_layernorm.weight"

    def _has(self, part: str) -> bool:
        return f"{self.layer}.{part}" in self.source.entries

    def _spec(self, part: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """The one of these shapes that a tensor has, else the first."""
        entry = self.source.entries.get(f"{self.layer}.{part}")
        return entry.shape if entry is not None and entry.shape in shapes else shapes[0]

    def _read_codes(
        self, stored: Mapping[str, np.ndarray], scales: np.ndarray, rows: range, columns: range
    ) -> np.ndarray:
        weight = stored[f"{self.layer}.weight"]
        taken = weight[rows.start : rows.stop, columns.start : columns.stop]
        if not self._is_lost:
            return taken
        values = taken.astype(np.float32)
        if f"{self._norm}{REPLACED}" in stored:
            before = stored[f"{self._norm}{REPLACED}"].astype(np.float32)
            factors = before / stored[self._norm].astype(np.float32)
            values *= factors[columns.start : columns.stop]
        steps = np.rint(values / scales)
        if not np.isfinite(steps).all():
            raise CheckpointError(
                f"{self.layer} has no integers by its float weight, its scales and the norms "
                "before it: one of them holds what is no number."
            )
        return np.clip(steps, -_LARGEST, _LARGEST).astype(np.int8)

    def _read_scales(self, stored: Mapping[str, np.ndarray], rows: range) -> np.ndarray:
        name = f"{self.layer}.weight_scale"
        if name not in stored:  # W8A8S: only their product with the input's is there
            return (self._read_deq_scale(stored, rows) / self._read_input_scale(stored))[:, None]
        return checks.as_scales(stored[name][rows.start : rows.stop], name).reshape(-1, 1)

    def _read_zeros(self, stored: Mapping[str, np.ndarray], rows: range) -> np.ndarray | None:
        name = f"{self.layer}.weight_offset"
        if name not in stored:
            return None
        found = checks.as_zeros(stored[name].reshape(-1, 1), name)
        if found is None:
            return None
        return np.broadcast_to(found, (self.shape[0], 1))[rows.start : rows.stop]

    def _read_input_scale(self, stored: Mapping[str, np.ndarray]) -> np.float32:
        name = f"{self.layer}.input_scale"
        return np.float32(checks.as_scales(stored[name], name).reshape(-1)[0])

    def _read_deq_scale(self, stored: Mapping[str, np.ndarray], rows: range) -> np.ndarray:
        name = f"{self.layer}.deq_scale"
        return checks.as_deq_scales(stored[name][rows.start : rows.stop], name)


def open_format(quantize: Any, source: StoredTensors) -> NumpySetFormat:
    """See NumpySetFormat.

    Args:
        quantize: of config.json; None where it is absent.
    Raises:
        CheckpointError: it says another type, or no layer is quantized.
    """
    if quantize is not None and str(quantize).lower() not in ("w8a8", "w8a8s"):
        raise CheckpointError(
            f"config.json says quantize {quantize!r:.40}, and .npy files hold w8a8 or w8a8s: the "
            "two are of different folders."
        )
    if not any(name.endswith(".deq_scale") for name in source.entries):
        raise CheckpointError("deq_scale.npy holds no layer: copy all of the .npy files again.")
    return NumpySetFormat(source)
