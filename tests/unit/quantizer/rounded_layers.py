"""LayerResults for the exports' tests, made in NumPy by plain rounding and none of our own code."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.result import KvScales, LayerResult, QuantizedModule, StaticRange

Tensors = Mapping[str, np.ndarray]
_LAYER = re.compile(r".+\.layers\.(\d+)\..+")
_STATIC = ("W8A8", "W8A8S", "W8A8_MIX")


def group_by_layer(names: Tensors) -> list[list[str]]:
    """The names of each decoder layer."""
    found: dict[int, list[str]] = {}
    for name in names:
        if match := _LAYER.fullmatch(name):
            found.setdefault(int(match[1]), []).append(name)
    return [found[number] for number in sorted(found)]


def bits_of(label: str) -> int:
    """Of a weight."""
    return 4 if label.startswith("W4") else 8


def round_nearest(
    weight: np.ndarray, bits: int, group_size: int | None, is_symmetric: bool
) -> QuantizedRows:
    """Min-max scales of groups of columns, and codes next to the weights."""
    num_rows, num_columns = weight.shape
    groups = weight.astype(np.float32).reshape(num_rows, -1, group_size or num_columns)
    lowest = np.minimum(groups.min(axis=2), 0)
    highest = np.maximum(groups.max(axis=2), 0)
    top = 2 ** (bits - 1) - 1
    if is_symmetric:
        scales = np.maximum(np.maximum(-lowest, highest) / top, 1e-6).astype(np.float32)
        zeros = np.zeros_like(scales)
    else:
        scales = np.maximum((highest - lowest) / (2 * top + 1), 1e-6).astype(np.float32)
        zeros = (np.rint(-lowest / scales) - top - 1).astype(np.float32)
    steps = np.rint(groups / scales[..., None] + zeros[..., None])
    codes = np.clip(steps, -top if is_symmetric else -top - 1, top).astype(np.int8)
    order = np.arange(num_columns) // (group_size or num_columns)
    return QuantizedRows(
        codes.reshape(weight.shape), scales, None if is_symmetric else zeros, order
    )


def round_module(
    name: str,
    tensors: Tensors,
    label: str,
    group_size: int | None = None,
    is_symmetric: bool = True,
    seed: int = 0,
) -> QuantizedModule:
    """One module of a float checkpoint; activations have a range of their own, at random."""
    rng = np.random.default_rng(seed + len(name))
    rows = round_nearest(tensors[f"{name}.weight"], bits_of(label), group_size, is_symmetric)
    bias = tensors.get(f"{name}.bias")
    static = first = second = None
    if label in _STATIC:
        static = StaticRange(np.float32(rng.uniform(0.01, 0.1)), np.float32(rng.integers(-30, 30)))
    if label == "W4A8_DYNAMIC":
        first = rows.scales.max(axis=1, keepdims=True)
        second = (rows.scales / first).astype(np.float32)
        rows = QuantizedRows(rows.codes, first * second, None, rows.groups)
    return QuantizedModule(
        name,
        label,
        bits_of(label),
        group_size,
        rows,
        None if bias is None else bias.astype(np.float32),
        static,
        first,
        second,
    )


def round_layers(
    folder: Path,
    label: str,
    group_size: int | None = None,
    is_symmetric: bool = True,
    has_kv_scales: bool = False,
) -> Iterator[LayerResult]:
    """All layers of a float folder; down projections stay float, as in the guides."""
    tensors = load_file(folder / "model.safetensors")
    for number, names in enumerate(group_by_layer(tensors)):
        matrices = [
            name.removesuffix(".weight")
            for name in names
            if tensors[name].ndim > 1 and not re.search(r"down_proj|4h_to_h\.", name)
        ]
        modules = tuple(
            round_module(name, tensors, label, group_size, is_symmetric, number)
            for name in matrices
        )
        yield finish_layer(names, tensors, modules, _kv_scales(names, tensors, has_kv_scales))


def finish_layer(
    names: list[str],
    tensors: Tensors,
    modules: tuple[QuantizedModule, ...],
    kv: tuple[str, KvScales] | None = None,
) -> LayerResult:
    """A layer of these modules; what else it has stays as it is."""
    taken = {f"{module.name}.{end}" for module in modules for end in ("weight", "bias")}
    rest = {name: tensors[name].astype(np.float32) for name in names if name not in taken}
    prefix, scales = kv or ("", None)
    return LayerResult(modules, rest, prefix, scales)


def _kv_scales(names: list[str], tensors: Tensors, is_wanted: bool) -> tuple[str, KvScales] | None:
    if not is_wanted:
        return None
    (keys,) = [name for name in names if re.search(r"(k_proj|query_key_value)\.weight$", name)]
    count, prefix = len(tensors[keys]), keys.rsplit(".", 2)[0]
    if keys.endswith("query_key_value.weight"):
        # As many rows of queries as the output projection has columns; then keys, then values.
        count = (count - tensors[f"{prefix}.dense.weight"].shape[1]) // 2
        prefix += ".query_key_value"
    scales = np.linspace(0.01, 0.05, count, dtype=np.float32)
    zeros = np.zeros_like(scales)
    return prefix, KvScales(scales, zeros, scales + np.float32(1), zeros)
