"""Random quantized folders of every format, written from the formats' descriptions with NumPy.

Nothing here uses the package's own packing: words are sums of shifted values.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from mindformers_glm.weights.safetensors_header import _DTYPES

Tensors = dict[str, np.ndarray]
GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Case:
    """One format and scheme.

    make: of a generator and a shape -> the layer's tensors, and the matrix that they mean.
    keys: what config.json has besides.
    kinds: msModelSlim's type of a quantized tensor; None: there is no description.
    is_kept: whether operators take its integers as they are.
    """

    make: Callable[[np.random.Generator, int, int], tuple[Tensors, np.ndarray]]
    keys: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    is_kept: bool = False
    old_file: str | None = None


def write(source: Path, folder: Path, case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Write a float checkpoint's folder with other, quantized matrices in its decoder layers.

    Returns:
        The float matrices that were meant, by the names of the source.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.is_file():
            shutil.copy(file, folder)
    stored, meant = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if ".layers." not in name or tensor.ndim < 2:
            stored[name] = tensor
            continue
        layer = name.removesuffix(".weight")
        parts, meant[name] = case.make(rng, *tensor.shape)
        stored |= {f"{layer}.{part}": value for part, value in parts.items()}
    raw = json.loads((folder / "config.json").read_text())
    if case.old_file is None:
        raw |= case.keys
    else:
        (folder / case.old_file).write_text(json.dumps(case.keys))
    (folder / "config.json").write_text(json.dumps(raw))
    save(stored, folder, case)
    return meant


def save(stored: Tensors, folder: Path, case: Case) -> None:
    """Write the tensors, and their description where the format has one."""
    if case.kind is None:
        _save_file(stored, folder / "model.safetensors")
        return
    kind = case.kind.lower()
    _save_file(stored, folder / f"quant_model_weight_{kind}.safetensors")
    layers = {name.rpartition(".")[0] for name in stored if name.endswith("_scale")}
    types = {
        name: "FLOAT"
        if name.rpartition(".")[0] not in layers or name.endswith(".bias")
        else case.kind
        for name in stored
    }
    described = types | {"model_quant_type": case.kind} | dict(case.description)
    is_new = "version" in described
    name = "quant_model_description.json" if is_new else f"quant_model_description_{kind}.json"
    (folder / name).write_text(json.dumps(described))


def write_kv_scales(
    source: Path, folder: Path, *, seed: int = 0, is_symmetric: bool = True
) -> Path:
    """A W8A16 folder of msModelSlim with scales of an int8 KV cache (C8).

    They are of the size of the keys and values of a random network, so that some clip.
    """
    write(source, folder, WEIGHT_ONLY["slim-w8a16"], seed)
    rng = np.random.default_rng(seed)
    raw = json.loads((folder / "config.json").read_text())
    heads = raw.get("num_key_value_heads") or raw["multi_query_group_num"]
    channels = heads * (raw.get("head_dim") or raw["kv_channels"])
    (file,) = folder.glob("*.safetensors")
    description = folder / "quant_model_description.json"
    tensors, types = load_file(file), json.loads(description.read_text())
    fused = "self_attention.query_key_value."
    for layer in range(raw.get("num_hidden_layers") or raw["num_layers"]):
        for part in "kv":
            prefix = f"model.layers.{layer}.self_attn.{part}_proj"
            if raw["model_type"] == "chatglm":
                prefix = f"transformer.encoder.layers.{layer}.{fused}{part}_proj"
            scale = rng.uniform(0.005, 0.015, channels).astype(np.float32)
            offset = np.zeros_like(scale)
            if not is_symmetric:
                offset = rng.integers(-30, 30, channels).astype(np.float32)
            tensors |= {f"{prefix}.kv_cache_scale": scale, f"{prefix}.kv_cache_offset": offset}
            types |= {f"{prefix}.kv_cache_{what}": "C8" for what in ("scale", "offset")}
    _save_file(tensors, file)
    description.write_text(json.dumps(types | {"kv_cache_type": "C8", "kv_quant_type": "C8"}))
    return folder


def write_meant(source: Path, folder: Path, meant: dict[str, np.ndarray]) -> Path:
    """The float checkpoint that has the matrices which were meant."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors") | meant
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@dataclass(frozen=True)
class Float8:
    """Bytes that a header calls F8_E4M3, which NumPy has not."""

    octets: np.ndarray


def _save_file(tensors: Mapping[str, Any], file: Path) -> None:
    codes = {
        np.dtype(name): code
        for code, (name, _) in _DTYPES.items()
        if name[:2] != "bf" and not name.startswith("float8")
    }
    header, content, position = {}, [], 0
    for name, value in tensors.items():
        array = np.ascontiguousarray(value.octets if isinstance(value, Float8) else value)
        code = "F8_E4M3" if isinstance(value, Float8) else codes[array.dtype]
        end = position + array.nbytes
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [position, end]}
        content.append(array.tobytes())
        position = end
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(content))


def _words(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 [..., n * bits / 32]: value i of a word, or order[i], in its bits from i * bits on."""
    per_word = 32 // bits
    places = (np.asarray(values).astype(np.int64) % 2**bits).reshape(
        *values.shape[:-1], -1, per_word
    )
    if order is not None:
        places = places[..., list(order)]
    joined = sum(places[..., place] << bits * place for place in range(per_word))
    return np.asarray(joined).astype(np.uint32).view(np.int32)


def _pairs(values: np.ndarray, upper_first: bool = False) -> np.ndarray:
    """int8 [..., n / 2], two int4 a byte, the even one below."""
    even, odd = values[..., 0::2].astype(int) % 16, values[..., 1::2].astype(int) % 16
    return ((even * 16 + odd) if upper_first else (odd * 16 + even)).astype(np.uint8).view(np.int8)


def _scales(
    rng: np.random.Generator, bits: int, *shape: int, dtype: type = np.float32
) -> np.ndarray:
    """Such that weights are about as large as those of a random network."""
    return np.asarray(rng.uniform(0.25, 1, shape) * 0.5 / 2**bits, dtype)


def _codes(rng: np.random.Generator, bits: int, *shape: int) -> np.ndarray:
    return rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)


def _meaning(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | float = 0.0,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """(codes - zeros) * scales in float32."""
    columns = codes.shape[1]
    if order is None:
        order = np.arange(columns) // (columns // scales.shape[1])
    zeros = np.broadcast_to(np.asarray(zeros, np.float32), scales.shape)
    wide = scales.astype(np.float32)[:, order]
    return (codes.astype(np.float32) - zeros[:, order]) * wide


def _shuffle(groups: np.ndarray) -> np.ndarray:
    """Groups of columns in an order that layers with the same inputs share, as those of tools."""
    return np.random.default_rng(len(groups)).permutation(groups)


def _slim(
    bits: int,
    group: int | None = None,
    is_packed: bool = True,
    is_symmetric: bool = True,
    is_flat: bool = False,
):
    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        groups = columns // (group or columns)
        codes, scales = _codes(rng, bits, rows, columns), _scales(rng, bits, rows, groups)
        zeros = np.zeros_like(scales)
        if not is_symmetric:
            zeros = rng.integers(-5, 6, scales.shape).astype(np.float32)
        weight = codes
        if bits == 4 and is_packed:
            weight = _pairs(codes) if group is None else _pairs(codes.T).T
        parts = {"weight": weight, "weight_scale": scales, "weight_offset": zeros}
        if is_flat:
            parts |= {name: parts[name][:, 0] for name in ("weight_scale", "weight_offset")}
        return parts, _meaning(codes, scales, zeros)

    return make


def _slim_static(deq: type, has_scales: bool = True, inputs: type = np.float32):
    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        codes, scales = _codes(rng, 8, rows, columns), _scales(rng, 8, rows, 1)
        input_scale = np.array([0.03125], np.float32)  # a power of two: the product is exact
        deq_scale = scales[:, 0] * input_scale
        parts = {
            "weight": codes,
            "input_scale": input_scale.astype(inputs),
            "input_offset": np.array([3], inputs),
            "quant_bias": rng.integers(-999, 999, rows).astype(np.int32),
            "deq_scale": deq_scale if deq is np.float32 else deq_scale.view(np.int32).astype(deq),
        }
        if has_scales:
            parts |= {"weight_scale": scales, "weight_offset": np.zeros_like(scales)}
        return parts, _meaning(codes, scales)

    return make


def _slim_w4a8(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
    codes, scales = _codes(rng, 4, rows, columns), _scales(rng, 4, rows, 1)
    second = rng.uniform(0.5, 2, (rows, columns // GROUP)).astype(np.float32)
    parts = {
        "weight": _pairs(codes.T).T,
        "weight_scale": scales,
        "weight_offset": np.zeros_like(scales),
        "weight_scale_second": second,
        "weight_offset_second": np.zeros(second.shape, np.int64),
        "scale_bias": np.zeros((rows, 1), np.float32),
    }
    return parts, _meaning(codes, scales * second)


def _packed_ct(bits: int, group: int | None, is_symmetric: bool = True, has_order: bool = False):
    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        groups = columns // (group or columns)
        codes = _codes(rng, bits, rows, columns)
        scales = _scales(rng, bits, rows, groups, dtype=np.float16)
        parts = {
            "weight_packed": _words(codes + 2 ** (bits - 1), bits),
            "weight_scale": scales,
            "weight_shape": np.array([rows, columns]),
        }
        zeros, order = np.zeros(scales.shape), None
        if not is_symmetric:
            zeros = _codes(rng, bits, *scales.shape)
            parts["weight_zero_point"] = _words((zeros + 2 ** (bits - 1)).T, bits).T
        if has_order:
            order = _shuffle(np.arange(columns) // group).astype(np.int32)
            parts["weight_g_idx"] = order
        return parts, _meaning(codes, scales, zeros, order)

    return make


def _int8_ct(is_static: bool):
    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        codes, scales = _codes(rng, 8, rows, columns), _scales(rng, 8, rows, 1)
        parts = {"weight": codes, "weight_scale": scales}
        if is_static:
            parts |= {
                "input_scale": np.array([0.03], np.float32),
                "input_zero_point": np.array([-3], np.int8),
            }
        return parts, _meaning(codes, scales)

    return make


def _old_ct(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
    """As before compressed-tensors 0.6: zero points of zeros, and one scale without an axis."""
    codes, scale = _codes(rng, 8, rows, columns), _scales(rng, 8)
    parts = {
        "weight": codes,
        "weight_scale": scale,
        "weight_zero_point": np.zeros((), np.int8),
        "input_scale": np.array(0.03, np.float32),
        "input_zero_point": np.array(-3, np.int8),
    }
    return parts, _meaning(codes, np.full((rows, 1), scale))


def _fp8_ct(is_tensor: bool):
    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Any, np.ndarray]:
        octets = rng.integers(0, 127, (rows, columns)) + 128 * rng.integers(0, 2, (rows, columns))
        exponent, mantissa = octets // 8 % 16, octets % 8
        plain = np.where(exponent > 0, 1 + mantissa / 8, mantissa / 8)
        sign = 1 - 2 * (octets // 128)
        values = sign * plain * 2.0 ** (np.maximum(exponent, 1) - 7)
        scales = _scales(rng, 8, *((1,) if is_tensor else (rows, 1)))
        parts: dict[str, Any] = {
            "weight": Float8(octets.astype(np.uint8)),
            "weight_scale": scales,
        }
        if is_tensor:
            parts["input_scale"] = np.array([0.1], np.float32)
        return parts, _meaning(
            values.astype(np.float32), scales.reshape(-1, 1) + np.zeros((rows, 1), np.float32)
        )

    return make


def gptq(bits: int, group: int, version: int, is_symmetric: bool, has_order: bool):
    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        values = rng.integers(0, 2**bits, (rows, columns))
        groups = columns // (group if group > 0 else columns)
        scales = _scales(rng, bits, rows, groups, dtype=np.float16)
        zeros = np.full(scales.shape, 2 ** (bits - 1))
        if not is_symmetric:
            zeros = rng.integers(0, 2**bits, scales.shape)
        order = np.arange(columns) // (columns // groups)
        if has_order:
            order = _shuffle(order)
        parts = {
            "qweight": _words(values, bits).T,
            "qzeros": _words((zeros - (version == 1)).T, bits),
            "scales": scales.T,
            "g_idx": order.astype(np.int32),
        }
        return parts, _meaning(values, scales, zeros, order)

    return make


def _awq(is_symmetric: bool):
    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        values = rng.integers(0, 16, (rows, columns))
        scales = _scales(rng, 4, rows, columns // GROUP, dtype=np.float16)
        zeros = np.full(scales.shape, 8) if is_symmetric else rng.integers(0, 16, scales.shape)
        parts = {
            "qweight": _words(values.T, 4, _AWQ_ORDER),
            "qzeros": _words(zeros.T, 4, _AWQ_ORDER),
            "scales": scales.T,
        }
        return parts, _meaning(values, scales, zeros)

    return make


def _chatglm(bits: int):
    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        codes, scales = _codes(rng, bits, rows, columns), _scales(rng, bits, rows, dtype=np.float16)
        weight = codes if bits == 8 else _pairs(codes, upper_first=True)
        return {"weight": weight, "weight_scale": scales}, _meaning(codes, scales[:, None])

    return make


def _bnb_int8(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
    codes, largest = _codes(rng, 8, rows, columns), 127 * _scales(rng, 8, rows)
    codes[0], largest[0] = 0, 0  # a row of zeros has no scale
    parts = {"weight": codes, "SCB": largest, "weight_format": np.zeros((), np.uint8)}
    return parts, _meaning(codes, largest[:, None] / np.float32(127))


def _bnb_four_bits(kind: str, is_nested: bool, block: int = 64):
    """Blocks run on from row to row; with double quantization scales are codes, too."""

    def make(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
        values = rng.integers(0, 16, rows * columns)
        code_map = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
        num_blocks = -(-rows * columns // block)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16"}
        state["shape"] = [rows, columns]
        parts = {"weight": (values[0::2] * 16 + values[1::2]).astype(np.uint8)[:, None]}
        parts["weight.quant_map"] = code_map
        if is_nested:
            codes = rng.integers(0, 256, num_blocks).astype(np.uint8)
            nested_map = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            nested = rng.uniform(0.02, 0.05, -(-num_blocks // 256)).astype(np.float32)
            scales = nested_map[codes] * np.repeat(nested, 256)[:num_blocks] + np.float32(0.125)
            parts |= {"weight.absmax": codes, "weight.nested_absmax": nested}
            parts["weight.nested_quant_map"] = nested_map
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.125}
        else:
            scales = rng.uniform(0.05, 0.2, num_blocks).astype(np.float32)
            parts["weight.absmax"] = scales
        described = np.frombuffer(json.dumps(state).encode(), np.uint8)
        parts[f"weight.quant_state.bitsandbytes__{kind}"] = described
        weight = code_map[values] * np.repeat(scales, block)[: rows * columns]
        return parts, weight.reshape(rows, columns)

    return make


def _ct_keys(layout: str, weights: dict[str, Any], inputs: Any = None) -> dict[str, Any]:
    defaults = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": defaults | weights,
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": layout,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head", "re:transformer.output_layer"],
        }
    }


def _by_group(bits: int = 4, **others: Any) -> dict[str, Any]:
    return {"num_bits": bits, "strategy": "group", "group_size": GROUP, **others}


def _gptq_case(
    bits: int, group: int, version: int, is_symmetric: bool, has_order: bool, **others: Any
) -> Case:
    keys = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": is_symmetric,
        "desc_act": has_order,
    }
    if version == 2:
        keys["checkpoint_format"] = "gptq_v2"
    if "old_file" not in others:
        keys = {"quantization_config": keys}
    make = gptq(bits, group, version, is_symmetric, has_order)
    return Case(make, keys, **others)


_AWQ_KEYS = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
_BNB_KEYS = {"quant_method": "bitsandbytes"}
_NEW = {"version": "1.0.0"}
_TOKEN = {"dynamic": True, "num_bits": 8, "strategy": "token", "type": "int", "symmetric": True}
_TENSOR = _TOKEN | {"dynamic": False, "strategy": "tensor", "symmetric": False}

WEIGHT_ONLY = {
    "slim-w8a16": Case(_slim(8), kind="W8A16", description=_NEW, is_kept=True),
    "slim-w8a16-asymmetric": Case(
        _slim(8, is_symmetric=False), kind="W8A16", description=_NEW, is_kept=True
    ),
    "slim-w8a16-groups": Case(
        _slim(8, GROUP), kind="W8A16", description=_NEW | {"group_size": GROUP}, is_kept=True
    ),
    "slim-old-w8a16-groups-asymmetric": Case(
        _slim(8, GROUP, is_symmetric=False), {"quantize": "w8a16"}, kind="W8A16", is_kept=True
    ),
    "slim-w8a16-flat-scales": Case(
        _slim(8, is_symmetric=False, is_flat=True), kind="W8A16", description=_NEW, is_kept=True
    ),
    "slim-w4a16": Case(_slim(4), kind="W4A16", description=_NEW, is_kept=True),
    "slim-w4a16-groups": Case(
        _slim(4, GROUP), kind="W4A16", description=_NEW | {"group_size": GROUP}, is_kept=True
    ),
    "slim-w4a16-groups-asymmetric": Case(
        _slim(4, GROUP, is_symmetric=False),
        kind="W4A16",
        description=_NEW | {"group_size": GROUP},
        is_kept=True,
    ),
    "slim-w4a16-asymmetric": Case(
        _slim(4, is_symmetric=False), kind="W4A16", description=_NEW, is_kept=True
    ),
    "slim-old-w4a16": Case(
        _slim(4, is_packed=False), {"quantize": "w4a16"}, kind="W4A16", is_kept=True
    ),
    "slim-old-w4a16-groups": Case(
        _slim(4, GROUP, is_packed=False), {"quantize": "w4a16"}, kind="W4A16", is_kept=True
    ),
    "ct-w4a16": Case(_packed_ct(4, GROUP), _ct_keys("pack-quantized", _by_group()), is_kept=True),
    "ct-w4a16-asymmetric": Case(
        _packed_ct(4, GROUP, is_symmetric=False),
        _ct_keys("pack-quantized", _by_group(symmetric=False)),
        is_kept=True,
    ),
    "ct-w4a16-actorder": Case(
        _packed_ct(4, GROUP, has_order=True),
        _ct_keys("pack-quantized", _by_group(actorder="group")),
        is_kept=True,
    ),
    "ct-w8a16": Case(_packed_ct(8, None), _ct_keys("pack-quantized", {}), is_kept=True),
    "ct-w8a16-groups": Case(
        _packed_ct(8, GROUP), _ct_keys("pack-quantized", _by_group(8)), is_kept=True
    ),
    "ct-w8a16-groups-asymmetric": Case(
        _packed_ct(8, GROUP, is_symmetric=False),
        _ct_keys("pack-quantized", _by_group(8, symmetric=False)),
        is_kept=True,
    ),
    "ct-fp8": Case(
        _fp8_ct(is_tensor=False),
        _ct_keys("float-quantized", {"type": "float"}, _TOKEN | {"type": "float"}),
    ),
    "ct-fp8-tensor": Case(
        _fp8_ct(is_tensor=True),
        _ct_keys(
            "naive-quantized",
            {"type": "float", "strategy": "tensor"},
            _TENSOR | {"type": "float", "symmetric": True},
        ),
    ),
    "gptq-v1": _gptq_case(4, GROUP, 1, True, False, is_kept=True),
    "gptq-v1-old-file": _gptq_case(
        4, GROUP, 1, True, False, is_kept=True, old_file="quantize_config.json"
    ),
    "gptq-v1-asymmetric": _gptq_case(4, GROUP, 1, False, False, is_kept=True),
    "gptq-v1-reordered": _gptq_case(4, GROUP, 1, True, True, is_kept=True),
    "gptq-v2-whole-rows": _gptq_case(4, -1, 2, True, False, is_kept=True),
    "gptq-v2-reordered-asymmetric": _gptq_case(4, GROUP, 2, False, True, is_kept=True),
    "gptq-int8": _gptq_case(8, GROUP, 1, True, False, is_kept=True),
    "gptq-int8-reordered-asymmetric": _gptq_case(8, GROUP, 1, False, True, is_kept=True),
    "gptq-v1-whole-rows-asymmetric": _gptq_case(4, -1, 1, False, False, is_kept=True),
    "gptq-int8-whole-rows": _gptq_case(8, -1, 1, True, False, is_kept=True),
    "gptq-int2": _gptq_case(2, GROUP, 1, False, False),
    "bnb-int8": Case(_bnb_int8, {"quantization_config": _BNB_KEYS}, is_kept=True),
    "bnb-nf4": Case(_bnb_four_bits("nf4", False), {"quantization_config": _BNB_KEYS}),
    "bnb-nf4-nested": Case(_bnb_four_bits("nf4", True), {"quantization_config": _BNB_KEYS}),
    "bnb-fp4": Case(_bnb_four_bits("fp4", False), {"quantization_config": _BNB_KEYS}),
    "awq": Case(_awq(is_symmetric=False), {"quantization_config": _AWQ_KEYS}, is_kept=True),
    "awq-symmetric": Case(
        _awq(is_symmetric=True), {"quantization_config": _AWQ_KEYS}, is_kept=True
    ),
}
CHATGLM = {
    "chatglm-int4": Case(_chatglm(4), {"quantization_bit": 4}, is_kept=True),
    "chatglm-int8": Case(_chatglm(8), {"quantization_bit": 8}, is_kept=True),
}
WITH_ACTIVATIONS = {
    "slim-w8a8": Case(_slim_static(np.float32), kind="W8A8", description=_NEW, is_kept=True),
    "slim-w8a8-int64": Case(_slim_static(np.int64), kind="W8A8", is_kept=True),
    "slim-w8a8-of-a-card": Case(  # inputs in the model's type; older: no scales of weights
        _slim_static(np.int64, False, np.float16), kind="W8A8", is_kept=True
    ),
    "slim-w8a8-mix": Case(
        _slim_static(np.float32), kind="W8A8_MIX", description=_NEW, is_kept=True
    ),
    "slim-w8a8s": Case(_slim_static(np.int64, False), kind="W8A8S", description=_NEW, is_kept=True),
    "slim-w8a8-dynamic": Case(_slim(8), kind="W8A8_DYNAMIC", description=_NEW, is_kept=True),
    "slim-w4a8-dynamic": Case(
        _slim_w4a8, kind="W4A8_DYNAMIC", description=_NEW | {"group_size": GROUP}, is_kept=True
    ),
    "ct-w8a8-dynamic": Case(_int8_ct(False), _ct_keys("int-quantized", {}, _TOKEN), is_kept=True),
    "ct-w8a8-static": Case(_int8_ct(True), _ct_keys("int-quantized", {}, _TENSOR), is_kept=True),
    "ct-w8a8-static-old": Case(
        _old_ct,
        {
            "compression_config": _ct_keys("int-quantized", {"strategy": "tensor"}, _TENSOR)[
                "quantization_config"
            ]
        },
        is_kept=True,
    ),
}
