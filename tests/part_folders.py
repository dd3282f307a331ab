"""Folders whose row-parallel layers msModelSlim has quantized in parts, one for each rank.

Those are W8A8 with a scale and an offset of the inputs for each part, or float in parts; the other
layers are float. Written with NumPy alone from the description of tp_list.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

ROW_PARALLEL = ("o_proj", "down_proj")


@dataclass(frozen=True)
class PartLayer:
    """What is meant: float weights [N, K], and of each column how activations are rounded."""

    weight: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray


def write(
    source: Path, folder: Path, num_parts: int = 2, float_layer: str = "layers.1.mlp.down_proj"
) -> tuple[dict[str, np.ndarray], dict[str, PartLayer]]:
    """Write a float checkpoint's folder with quantized layers.

    Returns:
        The float matrices that are meant, by their names, and the layers in parts.
    """
    rng = np.random.default_rng(5)
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    stored: dict[str, np.ndarray] = {}
    types: dict[str, str] = {}
    meant, layers = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if ".layers." not in name or tensor.ndim < 2 or not layer.endswith(ROW_PARALLEL):
            found, kind = {name: tensor}, "FLOAT"
        elif layer.endswith(float_layer):
            pieces = np.split(tensor, num_parts, axis=1)
            found = {f"{layer}.tp_list.{r}.weight": piece for r, piece in enumerate(pieces)}
            kind, meant[name] = "FLOAT", tensor
        else:
            found, layers[layer] = _write_parts(rng, layer, tensor, num_parts)
            kind, meant[name] = "W8A8", layers[layer].weight
        stored |= found
        types |= dict.fromkeys(found, kind)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in stored.items()}
    save_file(tensors, folder / "quant_model_weight_w8a8.safetensors")
    described = types | {"model_quant_type": "W8A8", "version": "1.0.0"}
    (folder / "quant_model_description.json").write_text(json.dumps(described))
    return meant, layers


def round_inputs(x: np.ndarray, layer: PartLayer) -> np.ndarray:
    """Activations as the integers of their columns mean them."""
    steps = np.clip(np.rint(x / layer.scales + layer.offsets), -128, 127)
    return ((steps - layer.offsets) * layer.scales).astype(np.float32)


def _write_parts(
    rng: np.random.Generator, layer: str, tensor: np.ndarray, num_parts: int
) -> tuple[dict[str, np.ndarray], PartLayer]:
    found: dict[str, np.ndarray] = {}
    weights, scales, offsets = [], [], []
    for rank, piece in enumerate(np.split(tensor, num_parts, axis=1)):
        codes, scale = _quantize(piece)
        input_scale = rng.uniform(0.01, 0.05, 1).astype(np.float32)
        offset = rng.integers(-40, 40, 1).astype(np.float32)
        sums = codes.sum(axis=1, dtype=np.int32)
        parts = {
            "weight": codes,
            "weight_scale": scale,
            "weight_offset": np.zeros_like(scale),
            "input_scale": input_scale,
            "input_offset": offset,
            "quant_bias": (-offset * sums).astype(np.int32),
            "deq_scale": (input_scale * scale)[:, 0],
        }
        found |= {f"{layer}.tp_list.{rank}.{name}": value for name, value in parts.items()}
        found[f"{layer}.reduce_scale.{rank}"] = np.ones(len(tensor), np.float32)
        weights.append(codes * scale)
        scales.append(np.repeat(input_scale, piece.shape[1]))
        offsets.append(np.repeat(offset, piece.shape[1]))
    codes = [found[f"{layer}.tp_list.{rank}.weight"] for rank in range(num_parts)]
    found[f"{layer}.weight"] = np.concatenate(codes, axis=1)
    found[f"{layer}.gather_scale"] = np.ones(len(tensor), np.float32)
    joined = (np.concatenate(part, axis=-1) for part in (weights, scales, offsets))
    return found, PartLayer(*joined)


def _quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)
