"""What a true-shape folder of random weights holds in each quantized format (make_slice.py).

Codes are random bytes as they lie in the file, which is what packed codes are; scales are such
that weights deviate by about 0.02 from zero, as those of make_slice.py do. What a format packs
besides codes (zero points, g_idx) is random or in order, as the format's name says.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEVIATION = 0.02
_GROUP = 128
_INT8_DEVIATION, _INT4_DEVIATION = 73.9, 4.61  # of uniform codes
_INPUT_SCALE = np.float32(0.05)
_CODES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "int32": "I32"}
_CODES |= {"int64": "I64"}


@dataclass(frozen=True)
class Part:
    """One tensor: its values, or random numbers of its type.

    dtype: as the file's header has it.
    mend: changes random bytes where not all will do.
    is_float: numbers are normal, and near one for norms; else their bytes are random.
    """

    dtype: str
    shape: tuple[int, ...]
    values: np.ndarray | None = None
    mend: Callable[[np.ndarray], np.ndarray] | None = None
    is_float: bool = False


Parts = dict[str, Part]
Maker = Callable[[np.random.Generator, int, int], Parts]


@dataclass(frozen=True)
class Form:
    """One format and scheme.

    make: (generator, rows, columns) -> the layer's tensors.
    keys: what config.json has besides.
    kind: msModelSlim's type of a quantized tensor; None: there is no description.
    bits: of a weight.
    models: model types that the format is of; empty: all.
    """

    make: Maker
    keys: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    bits: int = 8
    models: tuple[str, ...] = ()


def describe(form: Form, names: Iterable[str], quantized: set[str]) -> dict[str, Any]:
    """msModelSlim's description of tensors, of which `quantized` are layers' names."""
    types = {
        name: form.kind
        if name.rpartition(".")[0] in quantized and not name.endswith(".bias")
        else "FLOAT"
        for name in names
    }
    return types | {"model_quant_type": form.kind, "version": "1.0.0"} | dict(form.description)


def _given(values: np.ndarray) -> Part:
    return Part(_CODES[values.dtype.name], values.shape, np.ascontiguousarray(values))


def _bytes(*shape: int) -> Part:
    return Part("I8", shape)


def _words(*shape: int) -> Part:
    return Part("I32", shape)


def _scales(rng: np.random.Generator, deviation: float, *shape: int) -> np.ndarray:
    return (rng.uniform(0.5, 1.5, shape) * DEVIATION / deviation).astype(np.float32)


def _slim(bits: int, group: int | None = None, is_symmetric: bool = True) -> Maker:
    def make(rng: np.random.Generator, rows: int, columns: int) -> Parts:
        deviation = _INT8_DEVIATION if bits == 8 else _INT4_DEVIATION
        scales = _scales(rng, deviation, rows, columns // (group or columns))
        offsets = np.zeros_like(scales)
        if not is_symmetric:
            offsets = rng.integers(-3, 4, scales.shape).astype(np.float32)
        shape = (rows, columns)
        if bits == 4:
            shape = (rows, columns // 2) if group is None else (rows // 2, columns)
        return {
            "weight": _bytes(*shape),
            "weight_scale": _given(scales),
            "weight_offset": _given(offsets),
        }

    return make


def _slim_static(has_scales: bool = True) -> Maker:
    def make(rng: np.random.Generator, rows: int, columns: int) -> Parts:
        scales = _scales(rng, _INT8_DEVIATION, rows, 1)
        parts = {
            "weight": _bytes(rows, columns),
            "input_scale": _given(np.array([_INPUT_SCALE])),
            "input_offset": _given(np.array([3], np.float32)),
            "quant_bias": _given(rng.integers(-9999, 9999, rows).astype(np.int32)),
            "deq_scale": _given(scales[:, 0] * _INPUT_SCALE),
        }
        if has_scales:
            parts["weight_scale"] = _given(scales)
            parts["weight_offset"] = _given(np.zeros_like(scales))
        return parts

    return make


def _slim_w4a8(rng: np.random.Generator, rows: int, columns: int) -> Parts:
    second = rng.uniform(0.5, 2, (rows, columns // _GROUP)).astype(np.float32)
    scales = _scales(rng, _INT4_DEVIATION, rows, 1)
    return {
        "weight": _bytes(rows // 2, columns),
        "weight_scale": _given(scales),
        "weight_offset": _given(np.zeros_like(scales)),
        "weight_scale_second": _given(second),
        "weight_offset_second": _given(np.zeros(second.shape, np.int64)),
        "scale_bias": _given(np.zeros((rows, 1), np.float32)),
    }


def _packed_ct(
    bits: int, group: int | None, is_symmetric: bool = True, has_order: bool = False
) -> Maker:
    def make(rng: np.random.Generator, rows: int, columns: int) -> Parts:
        groups = columns // (group or columns)
        deviation = _INT8_DEVIATION if bits == 8 else _INT4_DEVIATION
        parts = {
            "weight_packed": _words(rows, columns * bits // 32),
            "weight_scale": _given(_scales(rng, deviation, rows, groups).astype(np.float16)),
            "weight_shape": _given(np.array([rows, columns])),
        }
        if not is_symmetric:
            parts["weight_zero_point"] = _words(rows * bits // 32, groups)
        if has_order:
            parts["weight_g_idx"] = _given(_shuffled_groups(rng, columns))
        return parts

    return make


def _int8_ct(is_static: bool) -> Maker:
    def make(rng: np.random.Generator, rows: int, columns: int) -> Parts:
        parts = {
            "weight": _bytes(rows, columns),
            "weight_scale": _given(_scales(rng, _INT8_DEVIATION, rows, 1)),
        }
        if is_static:
            parts["input_scale"] = _given(np.array([_INPUT_SCALE]))
            parts["input_zero_point"] = _given(np.array([-3], np.int8))
        return parts

    return make


def _fp8_ct(rng: np.random.Generator, rows: int, columns: int) -> Parts:
    def without_nan(octets: np.ndarray) -> np.ndarray:
        return octets & np.where((octets & 127) == 127, 254, 255).astype(np.uint8)

    weight = Part("F8_E4M3", (rows, columns), mend=without_nan)
    scales = _scales(rng, 100.0, rows, 1)  # random bits deviate by about as much
    return {"weight": weight, "weight_scale": _given(scales)}


def _gptq(bits: int, group: int, is_symmetric: bool = True, has_order: bool = False) -> Maker:
    def make(rng: np.random.Generator, rows: int, columns: int) -> Parts:
        groups, per_word = columns // group, 32 // bits
        deviation = _INT8_DEVIATION if bits == 8 else _INT4_DEVIATION
        middle = sum((2 ** (bits - 1) - 1) << bits * place for place in range(per_word))
        zeros = np.full((groups, rows // per_word), middle, np.uint32).view(np.int32)
        order = np.arange(columns, dtype=np.int32) // group
        return {
            "qweight": _words(columns // per_word, rows),
            "qzeros": _given(zeros) if is_symmetric else _words(*zeros.shape),
            "scales": _given(_scales(rng, deviation, groups, rows).astype(np.float16)),
            "g_idx": _given(_shuffled_groups(rng, columns) if has_order else order),
        }

    return make


def _shuffled_groups(rng: np.random.Generator, columns: int) -> np.ndarray:
    return rng.permutation(np.arange(columns, dtype=np.int32) // _GROUP)


def _awq(rng: np.random.Generator, rows: int, columns: int) -> Parts:
    groups = columns // _GROUP
    return {
        "qweight": _words(columns, rows // 8),
        "qzeros": _words(groups, rows // 8),
        "scales": _given(_scales(rng, _INT4_DEVIATION, groups, rows).astype(np.float16)),
    }


def _chatglm(bits: int) -> Maker:
    def make(rng: np.random.Generator, rows: int, columns: int) -> Parts:
        deviation = _INT8_DEVIATION if bits == 8 else _INT4_DEVIATION
        scales = _scales(rng, deviation, rows).astype(np.float16)
        return {"weight": _bytes(rows, columns * bits // 8), "weight_scale": _given(scales)}

    return make


def _ct(layout: str, weights: Mapping[str, Any], inputs: Any = None) -> dict[str, Any]:
    usual = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": usual | dict(weights),
        "input_activations": inputs,
        "output_activations": None,
    }
    settings = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "transformer.output_layer"],
    }
    return {"quantization_config": settings}


def _groups(bits: int = 4, **others: Any) -> dict[str, Any]:
    return {"num_bits": bits, "strategy": "group", "group_size": _GROUP, **others}


def _gptq_keys(bits: int, is_symmetric: bool = True, has_order: bool = False) -> dict[str, Any]:
    return {
        "quantization_config": {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": _GROUP,
            "sym": is_symmetric,
            "desc_act": has_order,
        }
    }


_TOKEN = {"dynamic": True, "num_bits": 8, "strategy": "token", "type": "int", "symmetric": True}
_TENSOR = _TOKEN | {"dynamic": False, "strategy": "tensor", "symmetric": False}
_AWQ_KEYS = {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "version": "gemm"}
_BY_GROUP = {"group_size": _GROUP}

FORMS = {
    "slim-w8a16": Form(_slim(8), kind="W8A16"),
    "slim-w8a16-asymmetric": Form(_slim(8, is_symmetric=False), kind="W8A16"),
    "slim-w4a16": Form(_slim(4), kind="W4A16", bits=4),
    "slim-w4a16-groups": Form(_slim(4, _GROUP), kind="W4A16", description=_BY_GROUP, bits=4),
    "slim-w4a16-groups-asymmetric": Form(
        _slim(4, _GROUP, is_symmetric=False), kind="W4A16", description=_BY_GROUP, bits=4
    ),
    "slim-w8a8": Form(_slim_static(), kind="W8A8"),
    "slim-w8a8-mix": Form(_slim_static(), kind="W8A8_MIX"),
    "slim-w8a8s": Form(_slim_static(has_scales=False), kind="W8A8S"),
    "slim-w8a8-dynamic": Form(_slim(8), kind="W8A8_DYNAMIC"),
    "slim-w4a8-dynamic": Form(_slim_w4a8, kind="W4A8_DYNAMIC", description=_BY_GROUP, bits=4),
    "ct-w4a16": Form(_packed_ct(4, _GROUP), _ct("pack-quantized", _groups()), bits=4),
    "ct-w4a16-asymmetric": Form(
        _packed_ct(4, _GROUP, is_symmetric=False),
        _ct("pack-quantized", _groups(symmetric=False)),
        bits=4,
    ),
    "ct-w4a16-actorder": Form(
        _packed_ct(4, _GROUP, has_order=True),
        _ct("pack-quantized", _groups(actorder="group")),
        bits=4,
    ),
    "ct-w8a16": Form(_packed_ct(8, None), _ct("pack-quantized", {})),
    "ct-w8a16-groups": Form(_packed_ct(8, _GROUP), _ct("pack-quantized", _groups(8))),
    "ct-w8a8-static": Form(_int8_ct(is_static=True), _ct("int-quantized", {}, _TENSOR)),
    "ct-w8a8-dynamic": Form(_int8_ct(is_static=False), _ct("int-quantized", {}, _TOKEN)),
    "ct-fp8": Form(_fp8_ct, _ct("float-quantized", {"type": "float"}, _TOKEN | {"type": "float"})),
    "gptq": Form(_gptq(4, _GROUP), _gptq_keys(4), bits=4),
    "gptq-asymmetric": Form(
        _gptq(4, _GROUP, is_symmetric=False), _gptq_keys(4, is_symmetric=False), bits=4
    ),
    "gptq-desc-act": Form(_gptq(4, _GROUP, has_order=True), _gptq_keys(4, has_order=True), bits=4),
    "gptq-int8": Form(_gptq(8, _GROUP), _gptq_keys(8)),
    "awq": Form(_awq, {"quantization_config": _AWQ_KEYS}, bits=4),
    "chatglm-int4": Form(_chatglm(4), {"quantization_bit": 4}, bits=4, models=("chatglm",)),
    "chatglm-int8": Form(_chatglm(8), {"quantization_bit": 8}, models=("chatglm",)),
}
