"""What lies behind an array of allocation.allocate: pages of a file, fresh ones, touched ones."""

import numpy as np

from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.allocation import HUGE_PAGE, OwnedMemory


def map_file(array: np.ndarray, file: int, offset: int) -> None:
    """Let an array of allocation.allocate, of 2 MiB or more, be a part of an open file.

    Writing to it changes only this process's memory. The file must not become shorter meanwhile.

    Args:
        file: descriptor, which may be closed afterwards; -1: fresh memory instead of a file.
        offset: a multiple of 2 MiB.
    Raises:
        ValueError: the array is not the whole of such memory (`OwnedMemory.of`).
    """
    memory = OwnedMemory.of(array)  # held: the memory must not go meanwhile
    library.check_result(
        library.load().glm_map_file(array.ctypes.data, memory.num_bytes, file, offset)
    )


def give_back(array: np.ndarray) -> None:
    """Let the system have the memory of an array of allocation.allocate; it holds zeros afterwards.

    Arrays below 2 MiB are left alone; `map_file` says which others are refused.
    """
    if array.nbytes >= HUGE_PAGE:
        map_file(array, -1, 0)


def first_touch(array: np.ndarray) -> None:
    """Write zeros into memory that nobody has written yet, by the threads that will read it.

    Rows of `array` (tile rows of a packed matrix) go to threads as the kernels share them out.
    """
    if not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError("expected a contiguous array that can be written to")
    if array.nbytes:
        library.check_result(
            library.load().glm_first_touch(array.ctypes.data, array.nbytes, max(len(array), 1))
        )
