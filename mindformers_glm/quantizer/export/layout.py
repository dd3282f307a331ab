"""What every format has in common: it is given layers one by one, and completes the folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.export.new_tensor import NewTensor
from mindformers_glm.quantizer.result import KvScales, QuantizedModule

MSMODELSLIM, COMPRESSED_TENSORS = "msmodelslim", "compressed-tensors"
GPTQ, AWQ = "gptq", "awq"
NUMPY_SET = "numpy"  # of the ChatGLM2 guide
FORMATS = (MSMODELSLIM, COMPRESSED_TENSORS, GPTQ, AWQ, NUMPY_SET)

# The longest names of what becomes of a tensor of the checkpoint, in any format.
_OF_MATRIX = (
    *(".weight", ".weight_scale", ".weight_offset", ".weight_scale_second"),
    *(".weight_offset_second", ".scale_bias", ".input_scale", ".input_zero_point"),
    *(".quant_bias", ".deq_scale", ".bias", ".weight_g_idx"),
    *(".k_proj.kv_cache_scale", ".k_proj.kv_cache_offset"),
    *(".v_proj.kv_cache_scale", ".v_proj.kv_cache_offset"),
)
_OF_PART = (
    *(".weight", ".weight_scale", ".weight_offset", ".input_scale", ".input_offset"),
    *(".quant_bias", ".deq_scale"),
)
_OF_VECTOR = (".weight", ".bias", ".module.weight", ".module.bias")


@dataclass(frozen=True)
class ExportSettings:
    """How a folder is written.

    Attributes:
        layout: one of FORMATS.
        label: msModelSlim's word for the scheme of the whole; most modules have it, if any.
        part_bytes: largest weight file; None: all in one.
        has_float32: tensors that stay float are written as float32, as the tool does on a CPU; else
            in the dtype that the checkpoint has them in.
        mindie_keys: the old layout of msModelSlim, and the keys that it adds to config.json; None:
            the new layout.
        num_ranks: linears whose columns are split are written in parts for so many ranks.
    """

    layout: str = MSMODELSLIM
    label: str = "FLOAT"
    part_bytes: int | None = None
    has_float32: bool = False
    mindie_keys: dict[str, Any] | None = None
    num_ranks: int = 1


class Layout(Protocol):
    """One format being written into a folder."""

    def add_module(self, module: QuantizedModule, bias_dtype: str) -> None:
        """Write a quantized linear module and its bias.

        Raises:
            UnsupportedError: the format has no such scheme.
        """
        ...

    def add_float(self, tensor: NewTensor) -> None:
        """Write a tensor that stays float."""
        ...

    def add_shifted_norm(self, name: str, weight: np.ndarray, bias: np.ndarray, dtype: str) -> None:
        """Write a norm behind which an anti-outlier method has put a bias, zeros mostly.

        Args:
            name: without ".weight".
        Raises:
            UnsupportedError: they are not zeros, and the format has no place for them.
        """
        ...

    def add_kv_scales(self, prefix: str, scales: KvScales) -> None:
        """Write the scales of an int8 KV cache.

        Raises:
            UnsupportedError: the format has none by channels.
        """
        ...

    def finish(self, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """Complete the files, and return what config.json is to say."""
        ...

    def abandon(self) -> None:
        """Close what is open."""
        ...


def list_longest_names(names: dict[str, int], num_ranks: int = 1) -> list[str]:
    """What the header of all files may have to name.

    Args:
        names: the tensors of the checkpoint, and how many axes they have.
        num_ranks: see ExportSettings.
    """
    in_parts = [
        f".tp_list.{rank}{end}"
        for rank in range(num_ranks if num_ranks > 1 else 0)
        for end in (*_OF_PART, ".reduce_scale")
    ]
    return [
        name.removesuffix(".weight") + end
        for name, axes in names.items()
        for end in ((*_OF_MATRIX, ".gather_scale", *in_parts) if axes > 1 else _OF_VECTOR)
    ]


def unsigned(rows: QuantizedRows, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [rows, columns] and zero points uint8 [rows, groups], both without sign.

    Raises:
        UnsupportedError: a zero point is no code.
    """
    middle = 2 ** (bits - 1)
    zeros = np.zeros_like(rows.scales) if rows.zeros is None else rows.zeros
    if not ((zeros == np.rint(zeros)) & (zeros >= -middle) & (zeros < middle)).all():
        raise UnsupportedError(
            "a zero point is no code of so many bits, which msModelSlim's format alone can say"
        )
    codes = (rows.codes.view(np.uint8) + np.uint8(middle)) & np.uint8(2**bits - 1)
    return codes, (zeros + middle).astype(np.uint8)


def pack_words(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 [..., n / values in a word] along the last axis, the lowest bits first.

    Args:
        values: uint8 [..., n] of `bits` bits; n fills words.
        order: order[i] is the place of the value that lies at i of a word; None: i.
    """
    per_word = 32 // bits
    places = values.reshape(*values.shape[:-1], -1, per_word)
    words = np.zeros(places.shape[:-1], np.uint32)
    for place in range(per_word):
        taken = places[..., place if order is None else order[place]]
        words |= taken.astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def refuse_norm_bias(name: str, bias: np.ndarray, layout: str) -> None:
    """Zeros need no place; anything else has none but in msModelSlim's format.

    Raises:
        UnsupportedError: there is anything else.
    """
    if bias.any():
        raise UnsupportedError(
            f"{name} has got a bias, which the format {layout} cannot hold: take --format "
            f"{MSMODELSLIM}, or another anti_method."
        )


def refuse_kv_scales(layout: str) -> None:
    """Say that a format has no place for scales of each channel of a KV cache.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        f"The format {layout} has no place for scales of an int8 KV cache by channels: take "
        f"--format {MSMODELSLIM}, or leave --use_kvcache_quant out."
    )
