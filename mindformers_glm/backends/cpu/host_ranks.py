"""Ranks of one host exchange numbers through memory that they share (csrc/host_ranks.h).

MindSpore sends them by TCP, 0.15 GB/s. The memory has no name in any file system: when the last
process that has it mapped is gone, so is the memory, however that process has ended.
"""

import ctypes
import mmap
import os
from collections.abc import Callable

import numpy as np

from mindformers_glm.backends.cpu import library
from mindformers_glm.config.environment import exchange_timeout_s, launcher_host
from mindformers_glm.core.process_group import ProcessGroup

_WORD = np.dtype(np.int64).itemsize
_NUM_TOKEN_WORDS = 2
# The memory in use, held to the end of the process.
_joined: list[mmap.mmap] = []


def are_joined() -> bool:
    """Whether this process exchanges numbers with the other ranks through shared memory."""
    return bool(_joined)


def join_ranks(group: ProcessGroup) -> bool:
    """Take part in the memory that all ranks of the job share, if all of them are on one host.

    The first rank makes it, and the others open it by the number of its process and its file. What
    they find there must be what the first one wrote: processes of another host, or of another
    container, have numbers of their own.

    Args:
        group: exchanges by other means; every rank calls this.
    Returns:
        Whether all ranks take part; else none does.
    """
    num_bytes = int(library.load().glm_host_ranks_bytes(group.size))
    memory, file, told = None, -1, [0] * (_NUM_TOKEN_WORDS + 1)
    if group.rank == 0:
        memory, file, told = _create(num_bytes)
    try:
        rows = group.gather([os.getpid(), launcher_host(), *told])
        if len({host for _, host, *_ in rows}) == 1 and group.rank > 0:
            memory = _open(rows[0][0], rows[0][2], rows[0][3:], num_bytes)
        # The first rank's file stays open until all have opened it.
        if not all(found for (found,) in group.gather([memory is not None])):
            return False
    finally:
        if file >= 0:
            os.close(file)
    assert memory is not None
    # Before the first exchange, which all ranks begin behind this meeting.
    memory[: _NUM_TOKEN_WORDS * _WORD] = bytes(_NUM_TOKEN_WORDS * _WORD)
    group.wait()
    _join(memory, group, [row[0] for row in rows])
    return True


def gather_rows(group: ProcessGroup) -> Callable[[np.ndarray], np.ndarray]:
    """What gives every rank the int64 [n] values of all, [size, n]."""

    def gather(values: np.ndarray) -> np.ndarray:
        own = np.ascontiguousarray(values, np.int64)
        found = np.empty((group.size, len(own)), np.int64)
        code = library.load().glm_gather_bytes(own.ctypes.data, found.ctypes.data, own.nbytes)
        if code != 0:
            raise RuntimeError(find_failure() or "too many numbers for one exchange")
        return found

    return gather


def find_failure() -> str:
    """What went wrong among the ranks of this host: "rank 1 has ended"; empty if nothing did."""
    text: bytes = library.load().glm_host_ranks_failure()
    return text.decode()


def _create(num_bytes: int) -> tuple[mmap.mmap | None, int, list[int]]:
    """The memory, its file, and what the others are told: the file's number and a token."""
    token = np.frombuffer(os.urandom(_NUM_TOKEN_WORDS * _WORD), np.int64)
    try:
        file = os.memfd_create("mindformers_glm")
    except OSError:  # a system that has no such files, or no more of them for this process
        return None, -1, [-1, *token.tolist()]
    os.ftruncate(file, num_bytes)
    memory = mmap.mmap(file, num_bytes)
    memory[: token.nbytes] = token.tobytes()
    return memory, file, [file, *token.tolist()]


def _open(pid: int, number: int, token: list[int], num_bytes: int) -> mmap.mmap | None:
    try:
        file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(file).st_size != num_bytes:
            return None
        memory = mmap.mmap(file, num_bytes)
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)
    found = np.frombuffer(memory[: len(token) * _WORD], np.int64)
    return memory if found.tolist() == token else None


def _join(memory: mmap.mmap, group: ProcessGroup, pids: list[int]) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    code = library.load().glm_join_host_ranks(
        address,
        group.rank,
        group.size,
        np.array(pids, np.int32).ctypes.data_as(ctypes.c_void_p),
        exchange_timeout_s(),
    )
    if code != 0:
        raise RuntimeError("the ranks of this host cannot share memory; the line above says why")
    _joined.append(memory)
