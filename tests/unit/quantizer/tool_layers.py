"""LayerResults that a tool's own folder stands for: its scales, and codes of the float weights.

Codes are rounded anew where the scales say how; of sparse and smoothed layers they are the tool's.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.result import KvScales, LayerResult, QuantizedModule, StaticRange
from tests.unit.quantizer.rounded_layers import Tensors, bits_of, group_by_layer

_TOP = {8: 127, 4: 7}


def read_layers(source: Path, tool: Path) -> list[LayerResult]:
    """Of msModelSlim's folder `tool`, which was made of the float folder `source`."""
    floats, stored = load_file(source / "model.safetensors"), _load(tool)
    (file,) = tool.glob("quant_model_description*.json")
    types = json.loads(file.read_text())
    layers = []
    for names in group_by_layer(stored):
        layers.append(_read_layer(names, floats, stored, types))
    return layers


def _load(folder: Path) -> Tensors:
    tensors: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def _read_layer(
    names: list[str], floats: Tensors, stored: Tensors, types: dict[str, str]
) -> LayerResult:
    modules, rest = [], {}
    kinds = {name: types[f"{name}.weight"] for name in _stems(names) if f"{name}.weight" in types}
    for name, label in kinds.items():
        if label != "FLOAT":
            modules.append(_read_module(name, label, floats, stored))
    quantized = {module.name for module in modules}
    for name in names:
        stem = name.rpartition(".")[0]
        is_copy = ".module." in name or "kv_cache" in name
        if stem not in quantized and not is_copy:
            rest[name] = stored[name].astype(np.float32)
    prefix, kv = _read_kv_scales(names, stored)
    return LayerResult(tuple(modules), rest, prefix, kv)


def _stems(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _read_module(name: str, label: str, floats: Tensors, stored: Tensors) -> QuantizedModule:
    weight, bits = floats[f"{name}.weight"].astype(np.float32), bits_of(label)
    scales, offsets = stored.get(f"{name}.weight_scale"), stored.get(f"{name}.weight_offset")
    static = None
    if f"{name}.input_scale" in stored:
        step = stored[f"{name}.input_scale"][0]
        static = StaticRange(step, stored[f"{name}.input_offset"][0])
    if scales is None or offsets is None:  # W8A8S has their product with the input's alone
        assert static is not None
        deq = stored[f"{name}.deq_scale"]
        deq = deq.astype(np.int32).view(np.float32) if deq.dtype == np.int64 else deq
        scales = (deq / static.scale)[:, None]
        # The product of this quotient and the input's scale may be the next float32 to it.
        sides = (np.float32(0), scales, np.float32(9))
        around = [np.nextafter(scales, side, dtype=np.float32) for side in sides]
        fits = [(static.scale * one)[:, 0] == deq for one in around]
        scales = np.select([fit[:, None] for fit in fits], around)
        offsets = np.zeros_like(scales)
    groups = np.arange(weight.shape[1]) // (weight.shape[1] // scales.shape[1])
    steps = np.rint(weight / scales[:, groups] + offsets[:, groups])
    lowest = -_TOP[bits] - bool(offsets.any())
    codes = np.clip(steps, lowest, _TOP[bits]).astype(np.int8)
    found = stored[f"{name}.weight"]
    has_scales, is_whole = f"{name}.weight_scale" in stored, found.shape == codes.shape
    if is_whole and not (has_scales and np.mean(codes == found) > 0.9999):
        codes = found  # sparse, or smoothed
    size = weight.shape[1] // scales.shape[1] if scales.shape[1] > 1 else None
    bias = stored.get(f"{name}.bias")
    zeros = offsets if offsets.any() else None
    return QuantizedModule(
        name, label, bits, size, QuantizedRows(codes, scales, zeros, groups), bias, static
    )


def _read_kv_scales(names: list[str], stored: Tensors) -> tuple[str, KvScales | None]:
    keys = [name for name in names if name.endswith("k_proj.kv_cache_scale")]
    if not keys:
        return "", None
    base = keys[0].removesuffix(".k_proj.kv_cache_scale")
    found = [
        stored[f"{base}.{part}_proj.kv_cache_{what}"]
        for part in "kv"
        for what in ("scale", "offset")
    ]
    return base, KvScales(*found)
