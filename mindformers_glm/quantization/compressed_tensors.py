"""compressed-tensors, the format of llm-compressor: groups of layers, each with its scheme.

Sources: what llm-compressor 0.5.1 writes, compared with its own logits; the fields of
`QuantizationConfig` in compressed-tensors 0.9. Codes and zero points are signed; packed ones are
shifted by half their range, and int32 words hold the lowest bits first.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import (
    DYNAMIC,
    FLOAT,
    STATIC,
    QuantizedRows,
    StaticActivation,
    StaticInput,
    StoredScheme,
    StoredTensors,
    TensorSpec,
)
from mindformers_glm.quantization import checks, packing
from mindformers_glm.quantization.plain_format import PlainFormat

_PACKED, _INTS, _FLOATS = "pack-quantized", "int-quantized", "float-quantized"
_FORMATS = (_PACKED, _INTS, _FLOATS, "naive-quantized")
_SCALE_TYPES = ("float16", "float32", "bfloat16")
_KV_SCALE = re.compile(r".+\.([kv]_|[kv]_proj\.output_)(scale|zero_point)")
_ONE = ((1,), (), (1, 1))  # shapes of a single number, as versions of the tool write it
_WORD_BITS = 32
_PATTERN, _CLASS = "re:", "Linear"  # what a target may be besides a layer's whole name


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
class CompressedTensorsFormat(PlainFormat):
    """quantization_config with quant_method compressed-tensors."""

    groups: tuple[GroupSettings, ...]
    ignored: tuple[str, ...]
    source: StoredTensors

    @property
    def tool(self) -> str:
        """See CheckpointFormat."""
        return f"compressed-tensors ({', '.join(sorted({group.layout for group in self.groups}))})"

    def linear(self, layer: str, shape: tuple[int, int]) -> "CompressedLinear | None":
        """See CheckpointFormat."""
        if _find_target(self.ignored, layer) is not None:
            return None
        # Of a target that several groups name, the tool takes the last one's scheme.
        by_target = {target: group for group in self.groups for target in group.targets}
        target = _find_target(by_target, layer)
        if target is None:
            return None
        return CompressedLinear(layer, shape, by_target[target], self.source)

    def surplus(self) -> Mapping[str, str]:
        """See CheckpointFormat."""
        names = self.source.entries
        return {
            name: "scales of a quantized KV cache" for name in names if _KV_SCALE.fullmatch(name)
        }

    def zeros(self) -> Mapping[str, str]:
        """See CheckpointFormat; older tools write zero points of symmetric layers too."""
        names, end = self.source.entries, ".weight_zero_point"
        return {name: "a zero point of a symmetric layer" for name in names if name.endswith(end)}


def _find_target(targets: Iterable[str], layer: str) -> str | None:
    """The one that counts of all that name a layer, in whatever order groups name them.

    As the tool ranks them: the whole name before patterns, those by the alphabet, and both before
    what fits the class. Source: `find_name_or_class_matches` of compressed-tensors 0.9, and
    `match_named_modules`, which has taken its place.
    """
    ranked = sorted(targets, key=lambda target: (_PATTERN in target, target))
    return next((t for name in (layer, _CLASS) for t in ranked if _is_match(t, name)), None)


def _is_match(target: str, name: str) -> bool:
    if target.startswith(_PATTERN):
        return re.match(target.removeprefix(_PATTERN), name) is not None
    return target == name


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
        if settings.layout == _PACKED:
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
        return self.settings.layout == _PACKED and self.source.entries[name].dtype == "int32"

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
        if self.settings.layout != _PACKED:
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


def open_format(
    raw: Mapping[str, Any], where: str, source: StoredTensors
) -> CompressedTensorsFormat:
    """Read quantization_config.

    Raises:
        CheckpointError: it is not what the tool writes.
        UnsupportedError: a format, a scheme or a transform that this version does not read.
    """
    groups, ignored = raw.get("config_groups"), raw.get("ignore") or []
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{where} has no config_groups: download config.json again.")
    if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
        raise CheckpointError(f"{where} has {ignored!r:.60} for ignore, expected names.")
    for key, what in (("sparsity_config", "sparse"), ("transform_config", "rotated")):
        if raw.get(key):
            raise UnsupportedError(
                f"{where} has {key}: {what} weights are not supported, use a checkpoint without."
            )
    found = []
    for name, group in groups.items():
        try:
            found.append(_read_group(group, raw.get("format")))
        except (KeyError, TypeError, AttributeError):
            raise CheckpointError(
                f"{where} has a {name!r:.40} that is not a scheme: download config.json again."
            ) from None
        except UnsupportedError as problem:
            raise UnsupportedError(f"{where}, {name!r:.40}: {problem}") from None
    names = [*ignored, *(target for group in found for target in group.targets)]
    patterns = (name.removeprefix(_PATTERN) for name in names if name.startswith(_PATTERN))
    checks.check_patterns(patterns, where)
    return CompressedTensorsFormat(tuple(found), tuple(ignored), source)


def _read_group(group: Mapping[str, Any], whole_format: Any) -> GroupSettings:
    weights, inputs = group["weights"], group.get("input_activations")
    _check_symmetric(weights, "weights")
    if inputs is not None:
        _check_symmetric(inputs, "input_activations")
    layout = group.get("format") or whole_format
    kind, bits = weights["type"], weights["num_bits"]
    strategy, size = weights["strategy"], weights.get("group_size")
    problems = {
        f"the format {layout!r:.40}": layout not in _FORMATS,
        f"{bits!r:.20}-bit {kind!r:.20} weights": type(bits) is not int
        or (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)),
        f"{kind!r:.20} weights in the format {layout!r:.40}": (kind == "float", layout)
        in ((True, _PACKED), (True, _INTS), (False, _FLOATS)),
        f"{strategy!r:.40} scales": strategy not in ("tensor", "channel", "group"),
        "output_activations": bool(group.get("output_activations")),
        "weights that are quantized while they are loaded": bool(weights.get("dynamic")),
        **_activation_problems(inputs, weights, kind),
    }
    for what, is_so in problems.items():
        if is_so:
            raise UnsupportedError(
                f"{what} are not read by this version; {', '.join(_FORMATS)} are, with int4, int8 "
                "and FP8 weights by tensor, channel or group, and int8 activations by token, or "
                "static by tensor."
            )
    if strategy == "group" and (type(size) is not int or size < 1):
        raise TypeError
    activation = FLOAT
    # FP8 weights run as the float ones they mean, whatever a card does with activations.
    if inputs is not None and kind != "float":
        activation = DYNAMIC if inputs["dynamic"] else STATIC
    return GroupSettings(
        targets=tuple(map(str, group["targets"])),
        layout=layout,
        bits=bits,
        is_float=kind == "float",
        strategy=strategy,
        group_size=size if strategy == "group" else None,
        is_symmetric=bool(weights["symmetric"]),
        activation=activation,
        has_input_zero=inputs is not None and activation == STATIC and not inputs["symmetric"],
        # "weight" and "static" leave columns in their order, with groups one behind the other.
        has_order=weights.get("actorder") in ("group", "dynamic", True),
    )


def _check_symmetric(arguments: Mapping[str, Any], what: str) -> None:
    """Refuse what only looks like a truth value: the string "false" would count as true."""
    value = arguments.get("symmetric", True)
    if not isinstance(value, bool):
        raise UnsupportedError(
            f"{what} with symmetric {value!r:.40} are not read, expected true or false: download "
            "config.json again."
        )


def _activation_problems(
    inputs: Mapping[str, Any] | None, weights: Mapping[str, Any], kind: str
) -> dict[str, bool]:
    """What is wrong with integer activations; FP8 ones are left as they are."""
    if inputs is None or kind == "float":
        return {}
    is_dynamic, strategy = inputs["dynamic"], inputs["strategy"]
    is_static = is_dynamic is False
    return {
        f"{inputs['num_bits']!r:.20}-bit {inputs['type']!r:.20} activations": (
            (inputs["num_bits"], inputs["type"]) != (8, "int")
        ),
        f"activations with dynamic {is_dynamic!r:.20} by {strategy!r:.20}": (
            (is_dynamic, strategy) not in ((True, "token"), (False, "tensor"))
        ),
        "asymmetric dynamic activations": is_dynamic is True and not inputs["symmetric"],
        "static activations with scales of groups or zero points of weights": is_static
        and (weights["strategy"] == "group" or not weights["symmetric"]),
    }
