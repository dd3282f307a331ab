"""Storages and tensors as torch.save describes them: what is sound, and what is read of it.

Source: torch 2.13 `torch/serialization.py` (`_save`, `_legacy_save`) and `torch/_utils.py`
(`_rebuild_tensor_v2`).
"""

from dataclasses import dataclass
from typing import Any

STORAGE_TYPES = {  # name in the file -> (name used here, bytes of an element)
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.DoubleStorage": ("float64", 8),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
}
_MOST_DIMENSIONS = 64  # torch's own limit
_MAX_SIZE = 2**63 - 1


class StateDictError(Exception):
    """A file is no plain state dict; the message says why and follows the file's name."""


@dataclass(frozen=True)
class Storage:
    """The bytes that one or more tensors share; `key` names them in the file."""

    key: str
    dtype: str
    element_bytes: int
    num_elements: int

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.element_bytes


@dataclass(frozen=True)
class StoredTensor:
    """A part of a storage in row-major order, beginning at element `offset`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names."""

    name: str


def read_storage(named: Any) -> Storage:
    """Read ("storage", type, key, device, elements); before PyTorch 1.6 a view follows.

    Raises:
        StateDictError: it is something else.
    """
    is_sound = (
        isinstance(named, tuple)
        and len(named) in (5, 6)
        and named[0] == "storage"
        and isinstance(named[1], Global)
        and named[1].name in STORAGE_TYPES
        and isinstance(named[2], str)
        and _is_size(named[4])
        and named[5:] in ((), (None,))
    )
    require(is_sound, "names a storage in a way that torch.save does not")
    return Storage(named[2], *STORAGE_TYPES[named[1].name], named[4])


def rebuild_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """(storage, offset, shape, strides, requires_grad, backward hooks[, metadata])."""
    require(len(arguments) in (6, 7), "describes a tensor in a way that torch.save does not")
    storage, offset, shape, strides = arguments[:4]
    is_sound = (
        isinstance(storage, Storage)
        and _is_size(offset)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MOST_DIMENSIONS
        and all(_is_size(size) for size in (*shape, *strides))
        and arguments[6:] in ((), (None,), ({},))
    )
    require(is_sound, "describes a tensor in a way that torch.save does not")
    if not _is_row_major(shape, strides):
        raise StateDictError(
            f"holds a tensor of shape {list(shape)} with strides {list(strides)}, which is not "
            "contiguous: save it after .contiguous()"
        )
    return StoredTensor(storage, offset, shape)


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return 0 in shape  # without elements any stride will do
        expected *= size
    return True


def rebuild_parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    """(tensor, requires_grad, backward hooks)."""
    is_sound = len(arguments) == 3 and isinstance(arguments[0], StoredTensor)
    require(is_sound, "describes a parameter in a way that torch.save does not")
    return arguments[0]


def require_state_dict(value: Any) -> dict[str, StoredTensor]:
    """Return what was read if it maps names to tensors; StateDictError otherwise."""
    if not isinstance(value, dict):
        raise StateDictError(
            f"holds a {type(value).__name__}, not a state dict: save the model's state_dict() alone"
        )
    for name, tensor in value.items():
        if not isinstance(tensor, StoredTensor):
            raise StateDictError(
                f"holds {name[:100]!r}, which is not a tensor: save the model's state_dict() alone"
            )
    return value


def require(is_sound: bool, what: str) -> None:
    """Raises StateDictError, which begins with `what`, unless it is sound."""
    if not is_sound:
        raise StateDictError(f"{what}: the file is corrupt or not a state dict")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE
