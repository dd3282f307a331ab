"""Memory for weights and KV cache: private, in huge pages, and not touched until written."""

import mmap
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np

HUGE_PAGE = 2 << 20
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_NUMPY_TYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "uint8": np.uint8,
    "int32": np.int32,
}


class OwnedMemory(mmap.mmap):
    """Memory of one array of 2 MiB or more, from a huge page on; gone when nothing refers to it.

    Others reach the same bytes by other arrays (MindSpore's Parameters), so what is ours is known
    by its address: `of` finds it, and nothing else in the process may be mapped over.
    """

    _alive: ClassVar[WeakValueDictionary[int, "OwnedMemory"]] = WeakValueDictionary()
    num_bytes: int
    start: int  # what lies before the huge page is never touched

    @classmethod
    def create(cls, num_bytes: int) -> "OwnedMemory":
        """Zeroed memory that counts as used only once written."""
        memory = cls(-1, num_bytes + HUGE_PAGE, flags=_PRIVATE)
        memory.madvise(mmap.MADV_HUGEPAGE)
        address = np.frombuffer(memory, np.uint8, 1).ctypes.data
        memory.num_bytes, memory.start = num_bytes, -address % HUGE_PAGE
        cls._alive[address + memory.start] = memory
        return memory

    @classmethod
    def of(cls, array: np.ndarray) -> "OwnedMemory":
        """The memory that is `array` and nothing else; it stays while the result is held.

        Raises:
            ValueError: it is a part of ours, or more than that, or not ours, or no longer.
        """
        memory = cls._alive.get(array.ctypes.data)
        if memory is None or memory.num_bytes != array.nbytes or not array.flags.c_contiguous:
            raise ValueError(
                f"the {array.nbytes} bytes at {array.ctypes.data:#x} are not the whole of one array"
                " of allocation.allocate of 2 MiB or more: nothing else may be mapped over"
            )
        return memory


def allocate(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeroed memory that counts as used only once written; bfloat16 comes as uint16.

    A shared mapping (Python's default) gets no huge pages, and 4 KiB pages cost 15 to 20 % of
    decode speed. The array keeps its mapping alive.
    """
    item = np.dtype(_NUMPY_TYPES[dtype])
    count = int(np.prod(shape, dtype=np.int64))
    num_bytes = count * item.itemsize
    if num_bytes >= HUGE_PAGE:
        memory = OwnedMemory.create(num_bytes)
        return np.frombuffer(memory, item, count, memory.start).reshape(shape)
    small = mmap.mmap(-1, max(num_bytes, 1), flags=_PRIVATE)
    return np.frombuffer(small, item, count).reshape(shape)


def count_numa_nodes(root: Path = Path("/")) -> int:
    """Memory nodes of this machine; 1 where the system tells nothing.

    Args:
        root: where sys is; tests bring their own.
    """
    return max(len(list((root / "sys/devices/system/node").glob("node[0-9]*"))), 1)
