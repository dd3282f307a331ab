"""msModelSlim's folders: the new layout (ascendV1) and the old one of --mindie_format.

Names, dtypes and packing are those of the outputs of msModelSlim 26.1.0 that quantization/
msmodelslim.py was compared with; W4A8_DYNAMIC by the tool's own saver of its second generation
(`modelslim_v1/save`, looked at, 2026), whose layers of split columns have a scale_bias for each of
16 ranks.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.quantization import packing
from mindformers_glm.quantizer.export.new_tensor import (
    NewTensor,
    new_tensor,
    round_floats,
    split_columns,
)
from mindformers_glm.quantizer.export.safetensors_writer import SafetensorsWriter
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.quantizer.result import ExchangeScales, KvScales, QuantizedModule
from mindformers_glm.quantizer.rounding import has_two_levels
from mindformers_glm.quantizer.static_terms import compute_static_terms

_FLOAT, _C8 = "FLOAT", "C8"
_VERSION = "1.0.0"
_WITHOUT_WEIGHT_SCALES = ("W8A8S",)
_ROW_PARALLEL = re.compile(r".+\.(o_proj|down_proj|dense|dense_4h_to_h)")
_NUM_RANKS = 16  # of a scale_bias where columns are split


class ModelSlimLayout:
    """See Layout.

    Args:
        label: of the whole where no module is quantized.
        mindie_keys: the old layout, and what config.json gets besides `quantize`; None: the new.
        has_int64: deq_scale is written as the bits of a float32 in int64, which the card's product
            with float16 results takes.
        num_ranks: of those that `split` are in parts for, as each has its columns (tp_list).
        split: linear modules that are.
    """

    def __init__(
        self,
        writer: SafetensorsWriter,
        label: str,
        mindie_keys: Mapping[str, Any] | None,
        has_int64: bool,
        num_ranks: int = 1,
        split: Collection[str] = (),
    ) -> None:
        self._writer, self._label = writer, label
        self._mindie_keys, self._has_int64 = mindie_keys, has_int64
        self._num_ranks, self._split = num_ranks, frozenset(split)
        self._types: dict[str, str] = {}
        self._labels: Counter[str] = Counter()
        self._group_sizes: set[int] = set()
        self._norms: dict[str, NewTensor] = {}
        self._has_kv_scales = self._has_exchange_scales = False

    @property
    def _is_new(self) -> bool:
        return self._mindie_keys is None

    def add_module(self, module: QuantizedModule, bias_dtype: str) -> None:
        """See Layout."""
        self._labels[module.label] += 1
        if (np.diff(module.rows.groups) < 0).any():
            raise UnsupportedError(
                f"{module.name} has groups of columns that lie anywhere, which msModelSlim's "
                "format cannot say: take --format gptq or compressed-tensors."
            )
        if module.group_size is not None:
            if module.weight_bits != 4:
                raise UnsupportedError(
                    f"{module.name} has groups of {module.group_size} columns and "
                    f"{module.weight_bits} bits: msModelSlim's format has groups of int4 only."
                )
            self._group_sizes.add(module.group_size)
        for tensor in self._encode(module):
            self._add(tensor, module.label)
        if module.bias is not None:
            self._add(round_floats(f"{module.name}.bias", module.bias, bias_dtype), _FLOAT)

    def add_float(self, tensor: NewTensor) -> None:
        """See Layout."""
        module = tensor.name.removesuffix(".weight")
        if self._num_ranks == 1 or module not in self._split:
            self._add(tensor, _FLOAT)
            return
        names = [f"{_part_name(module, rank)}.weight" for rank in range(self._num_ranks)]
        for part in split_columns(tensor, names):
            self._add(part, _FLOAT)

    def add_exchange_scales(self, module: str, scales: ExchangeScales) -> None:
        """Write the scales of int8 sums between ranks, of a module that has been added."""
        kind = self._types[f"{_part_name(module, 0)}.weight"]
        self._add(new_tensor(f"{module}.gather_scale", scales.of_sum), kind)
        for rank, of_part in enumerate(scales.of_parts):
            self._add(new_tensor(f"{module}.reduce_scale.{rank}", of_part), kind)
        self._has_exchange_scales = True

    def add_shifted_norm(self, name: str, weight: np.ndarray, bias: np.ndarray, dtype: str) -> None:
        """See Layout; the old layout has both under two names."""
        for stem in (name,) if self._is_new else (name, f"{name}.module"):
            self._add(round_floats(f"{stem}.weight", weight, dtype), _FLOAT)
            self._add(round_floats(f"{stem}.bias", bias, dtype), _FLOAT)

    def add_kv_scales(self, prefix: str, scales: KvScales) -> None:
        """See Layout."""
        for name, values in (
            ("k_proj.kv_cache_scale", scales.key_scale),
            ("k_proj.kv_cache_offset", scales.key_offset),
            ("v_proj.kv_cache_scale", scales.value_scale),
            ("v_proj.kv_cache_offset", scales.value_offset),
        ):
            self._add(new_tensor(f"{prefix}.{name}", values.astype(np.float32)), _C8)
        self._has_kv_scales = True

    def finish(self, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """See Layout."""
        whole = self._labels.most_common(1)[0][0] if self._labels else self._label
        kind = whole.lower()
        self._writer.finish(f"quant_model_weight_{kind}")
        name = f"quant_model_description{'' if self._is_new else f'_{kind}'}.json"
        text = json.dumps(self._describe(whole), indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
        if self._mindie_keys is None:
            return config
        return config | {"quantize": kind, "quantization_config": dict(self._mindie_keys)}

    def abandon(self) -> None:
        """See Layout."""
        self._writer.abandon()

    def _describe(self, whole: str) -> dict[str, Any]:
        if len(self._group_sizes) > 1:
            sizes = ", ".join(map(str, sorted(self._group_sizes)))
            raise UnsupportedError(
                f"Groups of {sizes} columns are in one model: msModelSlim's format names one size."
            )
        head: dict[str, Any] = {"version": _VERSION} if self._is_new else {}
        head["model_quant_type"] = whole
        if self._has_exchange_scales:
            head["reduce_quant_type"] = "per_channel"
        if self._is_new and self._group_sizes:
            head["group_size"] = next(iter(self._group_sizes))
        if self._is_new and self._has_kv_scales:
            head |= {"kv_cache_type": _C8, "kv_quant_type": _C8}
        return head | self._types

    def _add(self, tensor: NewTensor, kind: str) -> None:
        self._types[tensor.name] = kind
        self._writer.add(tensor)

    def _encode(self, module: QuantizedModule) -> Iterator[NewTensor]:
        """All of a module but its float bias."""
        name, rows = module.name, module.rows
        yield new_tensor(f"{name}.weight", self._pack(module))
        if module.parts:
            for rank, part in enumerate(module.parts):
                yield from self._encode(replace(part, name=_part_name(name, rank)))
            return
        zeros = np.zeros_like(rows.scales) if rows.zeros is None else rows.zeros
        if module.second_scales is not None and module.first_scales is not None:
            yield new_tensor(f"{name}.weight_scale", module.first_scales.astype(np.float32))
            yield new_tensor(f"{name}.weight_offset", np.zeros_like(module.first_scales))
            yield new_tensor(f"{name}.weight_scale_second", module.second_scales)
            yield new_tensor(f"{name}.weight_offset_second", np.rint(zeros).astype(np.int64))
            yield new_tensor(f"{name}.scale_bias", _make_scale_bias(module))
        elif module.label not in _WITHOUT_WEIGHT_SCALES:
            yield new_tensor(f"{name}.weight_scale", rows.scales.astype(np.float32))
            yield new_tensor(f"{name}.weight_offset", zeros.astype(np.float32))
        if module.static is None:
            return
        terms = compute_static_terms(rows, module.static, module.bias)
        yield new_tensor(f"{name}.input_scale", np.array([module.static.scale], np.float32))
        yield new_tensor(f"{name}.input_offset", np.array([module.static.offset], np.float32))
        yield new_tensor(f"{name}.quant_bias", terms.quant_bias)
        yield new_tensor(f"{name}.deq_scale", terms.as_stored(self._has_int64))

    def _pack(self, module: QuantizedModule) -> np.ndarray:
        """int8, of int4 in the new layout two to a byte: groups along rows, else along columns."""
        codes = module.rows.codes
        if not self._is_new or module.weight_bits != 4:
            return codes
        is_by_rows = module.group_size is not None or module.second_scales is not None
        _check_pairs(module.name, codes.shape, is_by_rows)
        if is_by_rows:
            return np.ascontiguousarray(packing.pack(codes.T, 4).T).view(np.int8)
        return packing.pack(codes, 4).view(np.int8)


def check_slim_shape(
    name: str, shape: Sequence[int], recipe: Recipe, num_ranks: int, is_new: bool
) -> None:
    """Refuse a matrix that the format cannot hold, before anything is calibrated.

    Args:
        shape: [rows, columns], of the whole matrix.
        num_ranks: in parts for so many; 1: it is not split.
        is_new: the new layout, with two int4 to a byte.
    Raises:
        UnsupportedError: pairs of int4, or 16 ranks of W4A8_DYNAMIC, cannot be made of it.
    """
    num_rows, num_columns = shape
    if is_new and recipe.weight_bits == 4 and not recipe.is_sparse:
        part = (num_rows, num_columns // num_ranks)
        what = f"{name}, for each of {num_ranks} ranks," if num_ranks > 1 else name
        _check_pairs(what, part, recipe.group_size is not None)
    if has_two_levels(recipe):
        _check_rank_columns(name, num_columns)


def _check_pairs(name: str, shape: Sequence[int], is_by_rows: bool) -> None:
    if shape[0 if is_by_rows else 1] % 2:
        raise UnsupportedError(
            f"{name} is {shape[0]} by {shape[1]}, which int4 in pairs cannot be: take "
            "--mindie_format."
        )


def _check_rank_columns(name: str, num_columns: int) -> None:
    if _ROW_PARALLEL.fullmatch(name) and num_columns % _NUM_RANKS:
        raise UnsupportedError(
            f"{name} has {num_columns} columns, which W4A8_DYNAMIC must split for {_NUM_RANKS} "
            "ranks."
        )


def _part_name(module: str, rank: int) -> str:
    return f"{module}.tp_list.{rank}"


def _make_scale_bias(module: QuantizedModule) -> np.ndarray:
    """float32 [out, 1 or 16]: 8 times the sums of the weights, by which a card shifts its nibbles.

    Raises:
        UnsupportedError: 16 ranks cannot split the columns.
    """
    weights = module.rows.dequantized()
    num_rows, num_columns = weights.shape
    parts = _NUM_RANKS if _ROW_PARALLEL.fullmatch(module.name) else 1
    _check_rank_columns(module.name, num_columns)
    sums = weights.reshape(num_rows, parts, -1).sum(axis=2, dtype=np.float32)
    return np.float32(8) * sums
