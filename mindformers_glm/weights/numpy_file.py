"""The .npy files of msModelSlim's oldest layout: dictionaries of torch tensors, pickled by NumPy.

Read without torch and without running anything of them: the pickle is followed operation by
operation (state_dict_pickle.py), and what is kept of a tensor is where its bytes lie. A file is a
header that says "one object", then the pickle of an array of that one object. A tensor of torch
pickles its storage as the bytes of a torch.save of it, in the format before PyTorch 1.6.
Source: the eight files of msModelSlim 26.1.0; `numpy.lib.format`; torch `torch/storage.py`
(`__reduce__`) and `torch/serialization.py` (`_legacy_save`).
"""

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.system.files import open_file
from mindformers_glm.weights.state_dict_pickle import StoredBytes, read_pickle
from mindformers_glm.weights.tensor_entry import TensorEntry
from mindformers_glm.weights.torch_tensors import (
    StateDictError,
    Storage,
    StoredTensor,
    rebuild_tensor,
    require_state_dict,
)

_NOT_SO = "is not a dictionary of tensors that msModelSlim saved with NumPy: copy it again"


def read_numpy_file(path: Path) -> list[TensorEntry]:
    """List the tensors of a file by the names of its dictionary.

    One that `expand` made of a single value has the shape [1, ..., 1].

    Raises:
        CheckpointError: the file is unreadable, damaged, or holds anything but plain dense tensors
            by name.
    """
    try:
        with open_file(path) as file:
            _read_header(file)
            reader = _Reader()
            value, _ = read_pickle(file, reader.calls)
    except OSError as problem:
        raise CheckpointError(f"Cannot read {path}: {problem.strerror}.") from None
    except StateDictError as problem:
        raise CheckpointError(f"{path} {problem}.") from None
    try:
        items = value.items if isinstance(value, _ObjectArray) else []
        if len(items) != 1:
            raise StateDictError(_NOT_SO)
        return [
            _locate(name, tensor, path, reader.begins)
            for name, tensor in require_state_dict(items[0]).items()
        ]
    except StateDictError as problem:
        raise CheckpointError(f"{path} {problem}.") from None


def _read_header(file: Any) -> None:
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise StateDictError(_NOT_SO)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise StateDictError(_NOT_SO) from None
    if shape != () or dtype != np.dtype(object):
        raise StateDictError(_NOT_SO)


@dataclass
class _ObjectArray:
    """A NumPy array of objects; its pickle fills it after it was made."""

    items: list[Any] = field(default_factory=list)

    def build(self, attributes: Any) -> None:
        """(version, shape, dtype, is_fortran, items)."""
        is_sound = isinstance(attributes, tuple) and len(attributes) == 5
        if not is_sound or not isinstance(attributes[4], list):
            raise StateDictError(_NOT_SO)
        self.items = attributes[4]


class _DType:
    """A dtype, which is always that of objects here."""

    def build(self, attributes: Any) -> None:
        """Nothing that matters."""


class _Reader:
    """The functions that such a pickle calls.

    begins: where the bytes of each storage begin in the file, by its key.
    """

    def __init__(self) -> None:
        self.begins: dict[str, int] = {}
        self.calls = {
            "numpy.core.multiarray._reconstruct": lambda _: _ObjectArray(),
            "numpy._core.multiarray._reconstruct": lambda _: _ObjectArray(),
            "numpy.ndarray": _refuse,
            "numpy.dtype": lambda _: _DType(),
            "torch.storage._load_from_bytes": self._load_storage,
            "torch._utils._rebuild_tensor_v2": _rebuild,
        }

    def _load_storage(self, arguments: tuple[Any, ...]) -> Storage:
        """A storage that lies in the file as the bytes of a torch.save of it."""
        if len(arguments) != 1 or not isinstance(arguments[0], StoredBytes):
            raise StateDictError(_NOT_SO)
        content, stream = arguments[0].content, io.BytesIO(arguments[0].content)
        for _ in range(3):  # a magic number, a version, a system
            read_pickle(stream)
        storage, _ = read_pickle(stream)
        keys, _ = read_pickle(stream)
        if not isinstance(storage, Storage) or keys != [storage.key]:
            raise StateDictError(_NOT_SO)
        begin = stream.tell() + 8  # behind the number of elements
        if begin + storage.num_bytes != len(content):
            raise StateDictError("has a tensor of fewer or more bytes than it says: copy it again")
        key = str(len(self.begins))  # the file's own keys are addresses, which come again
        self.begins[key] = arguments[0].begin + begin
        return Storage(key, storage.dtype, storage.element_bytes, storage.num_elements)


def _rebuild(arguments: tuple[Any, ...]) -> StoredTensor:
    """As in a state dict; offsets that are all zero are a view of one number."""
    if len(arguments) > 3 and isinstance(arguments[2], tuple) and isinstance(arguments[3], tuple):
        shape, strides = arguments[2:4]
        pairs = list(zip(shape, strides, strict=False))
        if len(shape) == len(strides) and all(1 in pair[:1] or pair[1] == 0 for pair in pairs):
            ones = (1,) * len(strides)
            arguments = (*arguments[:2], ones, ones, *arguments[4:])
    return rebuild_tensor(arguments)


def _refuse(_: tuple[Any, ...]) -> None:
    raise StateDictError(_NOT_SO)


def _locate(name: str, tensor: StoredTensor, path: Path, begins: dict[str, int]) -> TensorEntry:
    storage = tensor.storage
    first = tensor.offset * storage.element_bytes
    num_bytes = math.prod(tensor.shape) * storage.element_bytes
    if storage.key not in begins or first + num_bytes > storage.num_bytes:
        raise StateDictError(_NOT_SO)
    begin = begins[storage.key] + first
    return TensorEntry(name, storage.dtype, tensor.shape, path, begin, begin + num_bytes)
