"""Sets of .npy files as the ChatGLM2 guide has them, of random W8A8 or W8A8S layers.

Quantized here from a float checkpoint by the tool's published arithmetic, in NumPy; torch only
pickles the tensors, as the tool does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

# The matrices that the tool leaves float in the guide.
FLOAT_MATRIX = "mlp.dense_4h_to_h.weight"
_FILES = ("input_scale", "input_offset", "quant_bias", "deq_scale", "weight_scale", "weight_offset")


@dataclass(frozen=True)
class Layer:
    """What is meant: integers [N, K] and everything that belongs to them."""

    codes: np.ndarray
    weight_scale: np.ndarray
    input_scale: np.ndarray
    input_offset: np.ndarray
    deq_scale: np.ndarray
    quant_bias: np.ndarray
    bias: np.ndarray | None


def quantize(source: Path, seed: int = 0) -> dict[str, Layer]:
    """Quantize the decoder's matrices but FLOAT_MATRIX: symmetric by rows, inputs at random."""
    rng, tensors = np.random.default_rng(seed), load_file(source / "model.safetensors")
    layers = {}
    for name, tensor in tensors.items():
        if ".layers." not in name or tensor.ndim < 2 or name.endswith(FLOAT_MATRIX):
            continue
        layer, weight = name.removesuffix(".weight"), tensor.astype(np.float32)
        scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
        codes = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        input_scale = rng.uniform(0.01, 0.1, 1).astype(np.float32)
        offset = rng.integers(-30, 30, 1).astype(np.float32)
        deq = (input_scale * scale)[:, 0]
        bias = tensors.get(f"{layer}.bias")
        own = 0 if bias is None else bias.astype(np.float32) / deq
        quant_bias = np.rint(own - offset * codes.sum(axis=1, dtype=np.int32)).astype(np.int32)
        layers[layer] = Layer(codes, scale, input_scale, offset, deq, quant_bias, bias)
    return layers


def write(
    source: Path,
    folder: Path,
    layers: Mapping[str, Layer],
    *,
    has_fp_bias: bool = False,
    has_weight_scales: bool = True,
    is_corrected: bool = True,
    is_int64: bool = True,
) -> Path:
    """Write the set of a float checkpoint's layers into a folder.

    Args:
        has_fp_bias: the older files: biases have one of their own, so no matrix is lost.
        is_corrected: quant_bias is less the offset's part.
    """
    tensors = load_file(source / "model.safetensors")
    sets: dict[str, dict[str, Any]] = {name: {} for name in ("quant_weight", *_FILES)}
    float_names = [name for name in tensors if name.rpartition(".")[0] not in layers]
    for name in float_names:
        if name.endswith(".weight") and tensors[name].ndim > 1:
            sets["quant_weight"][name.removesuffix(".weight")] = tensors[name]
    for name, layer in layers.items():
        is_lost = layer.bias is not None and not has_fp_bias
        sets["quant_weight"][name] = layer.bias if is_lost else layer.codes
        deq, steps = layer.deq_scale, layer.quant_bias
        if not is_corrected:
            steps = np.rint((0 if layer.bias is None else layer.bias / deq) + np.zeros(len(deq)))
        sets["input_scale"][name], sets["input_offset"][name] = (
            layer.input_scale,
            layer.input_offset,
        )
        sets["quant_bias"][name] = steps.astype(np.int32)
        sets["deq_scale"][name] = deq.view(np.int32).astype(np.int64) if is_int64 else deq
        sets["weight_scale"][name] = layer.weight_scale
        sets["weight_offset"][name] = np.zeros_like(layer.weight_scale)
    if not has_weight_scales:
        del sets["weight_scale"], sets["weight_offset"]
    sets["anti_fp_norm"] = {name: t for name, t in tensors.items() if "layernorm" in name}
    if has_fp_bias:
        found = {name: layer.bias for name, layer in layers.items() if layer.bias is not None}
        sets["fp_bias"] = found
    folder.mkdir(exist_ok=True)
    for stem, values in sets.items():
        save(folder / f"{stem}.npy", values)
    return folder


def save(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """One dictionary of torch tensors, pickled by NumPy."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in values.items()}
    np.save(path, np.array(tensors, dtype=object), allow_pickle=True)
