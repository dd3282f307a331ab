"""What one rank may take of a machine that it shares with other ranks of its job."""

import socket
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.system.host_memory import read_available_memory
from mindformers_glm.system.processors import physical_cores, usable_processors

T = TypeVar("T")
_BITS = 32  # of a word of a mask of processors
_NUM_WORDS = 64  # masks of 2048 processors; those beyond are not shared out


@dataclass(frozen=True)
class HostShare:
    """The ranks on this machine, by their numbers, and what each may take.

    num_threads: cores that this rank may use, each divided by the ranks that may use it; None for a
        rank that is alone, which takes what is best (backends/cpu/library.py).
    most_threads: the same of processors, two on a core with hyperthreads: more threads wait for
        each other, and a rank for all threads of the others.
    """

    group: ProcessGroup
    local_ranks: tuple[int, ...]
    num_threads: int | None
    most_threads: int | None = None

    def available_memory(self, own_bytes: int = 0) -> int | None:
        """Return this rank's share of the memory that can still be taken, in bytes.

        All ranks ask together, so that none counts memory as free that another is about to fill.

        Args:
            own_bytes: what this rank holds already and counts as available to it.
        """
        self.group.wait()
        found = read_available_memory()
        answers = self.group.gather([-1 if found is None else found])
        local = [answers[rank][0] for rank in self.local_ranks]
        return None if min(local) < 0 else min(local) // len(local) + own_bytes


def share_host(group: ProcessGroup) -> HostShare:
    """Find out who else is on this machine, and on which processors."""
    if group.size == 1:
        return HostShare(group, (0,), None)
    processors = usable_processors()
    host = zlib.crc32(socket.gethostname().encode())
    rows = group.gather([host, *_to_mask(processors)])
    local_ranks = tuple(rank for rank, row in enumerate(rows) if row[0] == host)
    masks = [_from_mask(rows[rank][1:]) for rank in local_ranks]
    num_threads = count_threads(processors, masks)
    if len(local_ranks) == 1:
        return HostShare(group, local_ranks, num_threads)
    return HostShare(group, local_ranks, num_threads, _divide(processors, masks))


def count_threads(own: set[int], masks: Sequence[set[int]]) -> int:
    """Threads for a rank on the processors `own`, where ranks (itself included) have these masks.

    Example: 2 ranks that may both use 4 cores get 2 threads each; where the launcher gave each 2
    cores of its own, 2 as well.
    """
    return _divide(physical_cores(own), [physical_cores(mask) for mask in masks])


def _divide(own: set[T], all_users: Sequence[set[T]]) -> int:
    """How many of `own` are left for one of the users, each divided by those that have it."""
    return max(1, int(sum(1 / sum(one in used for used in all_users) for one in own) + 1e-6))


def _to_mask(processors: set[int]) -> list[int]:
    words = [0] * _NUM_WORDS
    for processor in processors:
        if processor < _BITS * _NUM_WORDS:
            words[processor // _BITS] |= 1 << processor % _BITS
    return words


def _from_mask(words: Sequence[int]) -> set[int]:
    return {
        index * _BITS + bit
        for index, word in enumerate(words)
        for bit in range(_BITS)
        if word >> bit & 1
    }
