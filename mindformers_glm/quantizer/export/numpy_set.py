"""The ChatGLM2 guide's .npy files: dictionaries of torch tensors, pickled by NumPy, without torch.

The eight files of the guide's list: quant_weight, weight_scale, weight_offset, input_scale,
input_offset, quant_bias, deq_scale and fp_bias, which keeps the biases that later versions of the
tool save in place of matrices. Sparse layers (W8A8S) have no weight_scale and weight_offset. Norms
are in anti_fp_norm.npy where an anti-outlier method has changed them, else in the float checkpoint.
A file is written as layers come: a pickle is a program, here with one loop.
Sources: the files of msModelSlim 26.1.0, taken apart with pickletools; numpy.lib.format 1.0; torch
`_legacy_save`.
"""

import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.quantizer.export.new_tensor import NewTensor, new_tensor, round_floats
from mindformers_glm.quantizer.result import KvScales, QuantizedModule
from mindformers_glm.quantizer.static_terms import compute_static_terms

_FILES = (
    *("quant_weight", "weight_scale", "weight_offset", "input_scale"),
    *("input_offset", "quant_bias", "deq_scale", "fp_bias"),
)
_OTHERS = ("anti_fp_norm", "kv_cache_scale", "kv_cache_offset")  # where there are such
_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int8": "CharStorage",
}
_SHORT = 2**32  # bytes that BINBYTES can have
_PROTOCOL = 4


class NumpySetLayout:
    """See Layout.

    Args:
        has_int64: see ModelSlimLayout.
    """

    def __init__(self, folder: Path, has_int64: bool) -> None:
        self._folder, self._has_int64 = folder, has_int64
        self._files: dict[str, _DictionaryFile] = {}

    def add_module(self, module: QuantizedModule, bias_dtype: str) -> None:
        """See Layout."""
        if module.static is None or module.label not in ("W8A8", "W8A8S"):
            raise UnsupportedError(
                f"{module.name} is {module.label}, and the .npy files hold W8A8 or W8A8S."
            )
        for stem, tensor in self._encode(module):
            self._add(stem, tensor)
        if module.bias is not None:
            self._add("fp_bias", round_floats(module.name, module.bias, bias_dtype))

    def add_float(self, tensor: NewTensor) -> None:
        """See Layout; of vectors, only changed norms have a file."""
        if len(tensor.shape) > 1:
            name = tensor.name.removesuffix(".weight")
            renamed = NewTensor(name, tensor.dtype, tensor.shape, tensor.num_bytes, tensor.chunks)
            self._add("quant_weight", renamed)

    def add_shifted_norm(self, name: str, weight: np.ndarray, bias: np.ndarray, dtype: str) -> None:
        """See Layout."""
        self._add("anti_fp_norm", round_floats(f"{name}.weight", weight, dtype))
        if bias.any():
            self._add("anti_fp_norm", round_floats(f"{name}.bias", bias, dtype))

    def add_kv_scales(self, prefix: str, scales: KvScales) -> None:
        """See Layout."""
        for part, scale, offset in (
            ("k_proj", scales.key_scale, scales.key_offset),
            ("v_proj", scales.value_scale, scales.value_offset),
        ):
            name = f"{prefix}.{part}"
            self._add("kv_cache_scale", new_tensor(name, scale.astype(np.float32)))
            self._add("kv_cache_offset", new_tensor(name, offset.astype(np.float32)))

    def finish(self, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """See Layout; config.json stays as it is, for the float checkpoint goes with the files."""
        self._open("fp_bias")  # listed by the guide, also where no layer has a bias
        for file in self._files.values():
            file.close()
        return config

    def abandon(self) -> None:
        """See Layout."""
        for file in self._files.values():
            file.abandon()

    def _add(self, stem: str, tensor: NewTensor) -> None:
        self._open(stem).add(tensor)

    def _open(self, stem: str) -> "_DictionaryFile":
        assert stem in (*_FILES, *_OTHERS), stem
        if stem not in self._files:
            self._files[stem] = _DictionaryFile(self._folder / f"{stem}.npy")
        return self._files[stem]

    def _encode(self, module: QuantizedModule) -> Iterator[tuple[str, NewTensor]]:
        name, rows, static = module.name, module.rows, module.static
        assert static is not None
        terms = compute_static_terms(rows, static, module.bias)
        yield "quant_weight", new_tensor(name, rows.codes)
        yield "input_scale", new_tensor(name, np.array([static.scale], np.float32))
        yield "input_offset", new_tensor(name, np.array([static.offset], np.float32))
        yield "quant_bias", new_tensor(name, terms.quant_bias)
        yield "deq_scale", new_tensor(name, terms.as_stored(self._has_int64))
        if module.label == "W8A8":
            zeros = np.zeros_like(rows.scales) if rows.zeros is None else rows.zeros
            yield "weight_scale", new_tensor(name, rows.scales)
            yield "weight_offset", new_tensor(name, zeros)


class _DictionaryFile:
    """A .npy file of one dictionary of tensors by name, which grows."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(_BEGINNING)

    def add(self, tensor: NewTensor) -> None:
        """Write one item; its bytes pass through."""
        begin = _storage_head(tensor)
        num_bytes = len(begin) + tensor.num_bytes
        self._file.write(_text(tensor.name) + _call("torch._utils", "_rebuild_tensor_v2") + b"(")
        self._file.write(_call("torch.storage", "_load_from_bytes"))
        is_short = num_bytes < _SHORT
        size = struct.pack("<I", num_bytes) if is_short else struct.pack("<Q", num_bytes)
        self._file.write((b"B" if is_short else b"\x8e") + size + begin)
        for chunk in tensor.chunks:
            self._file.write(chunk.reshape(-1).view(np.uint8).data)
        self._file.write(b"\x85R")  # the call, with one argument
        strides = tuple(
            int(np.prod(tensor.shape[axis + 1 :], dtype=np.int64))
            for axis in range(len(tensor.shape))
        )
        self._file.write(b"K\x00" + _numbers(tensor.shape) + _numbers(strides) + b"\x89")
        self._file.write(_call("collections", "OrderedDict") + b")R" + b"tR")

    def close(self) -> None:
        """Complete the file."""
        self._file.write(_END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close it as it is."""
        self._file.close()


def _call(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


# An array of one object, to be filled with [{ and what follows; then that list ends, and all.
_BEGINNING = (
    pickle.PROTO
    + bytes([_PROTOCOL])
    + _call("numpy.core.multiarray", "_reconstruct")
    + _call("numpy", "ndarray")
    + b"K\x00\x85C\x01b\x87R"
    + b"(K\x01)"
    + _call("numpy", "dtype")
    + _text("O8")
    + b"\x89\x88\x87R"
    + b"(K\x03"
    + _text("|")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
    + b"\x89]}("
)
_END = b"uatb."


def _storage_head(tensor: NewTensor) -> bytes:
    """What stands before the bytes in a torch.save of a storage, in the way before PyTorch 1.6."""
    element_bytes = 2 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype).itemsize
    count = tensor.num_bytes // element_bytes
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    key = "0"  # of the only storage in these bytes
    # ("storage", its class, key, device, elements, no view of another), by persistent_load.
    storage = b"(%b%b%b%b%bNtQ." % (
        _text("storage"),
        _call("torch", _STORAGES[tensor.dtype]),
        _text(key),
        _text("cpu"),
        _number(count),
    )
    return b"".join(
        (
            pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
            pickle.dumps(1001, protocol=2),
            pickle.dumps(system, protocol=2),
            pickle.PROTO + b"\x02" + storage,
            pickle.dumps([key], protocol=2),
            struct.pack("<q", count),
        )
    )
