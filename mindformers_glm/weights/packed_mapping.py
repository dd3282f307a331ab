"""Lay a packed file over the memory of Parameters instead of reading it."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from mindformers_glm.weights.packed_header import HUGE_PAGE, PackedEntry, PackedHeader

# Lets an array be the part of an open file from an offset on; file -1: memory of its own again.
MapFile = Callable[[np.ndarray, int, int], None]
_HUGE_SHARE = 0.9  # of a mapped Parameter that must lie in huge pages


def map_large(
    file: int, header: PackedHeader, arrays: Mapping[str, np.ndarray], map_file: MapFile
) -> set[str]:
    """Map the large Parameters that the system maps in huge pages; return their names.

    Linux does where the file system keeps files in such pages (ext4 since 6.16): then nothing is
    copied, and the kernels read as fast as from memory. Small pages cost 15 to 20 % of decode
    speed, so what lies in them is copied.
    """
    large = [entry for entry in header.entries if entry.num_bytes >= HUGE_PAGE]
    # Tells whether the system does so at all, before much is read in vain.
    smallest = sorted(large, key=lambda entry: entry.num_bytes)[:1]
    mapping = _Mapping(file, header.data_begin, arrays, map_file)
    mapped: set[str] = set()
    for entries in smallest, [entry for entry in large if entry not in smallest]:
        try:
            mapped |= mapping.lay(entries)
        except RuntimeError:  # some file systems cannot map at all
            unmap([entry.name for entry in large], arrays, map_file)
            return set()
        if not mapped:
            break
    return mapped


def unmap(names: Iterable[str], arrays: Mapping[str, np.ndarray], map_file: MapFile | None) -> None:
    """Give arrays fresh memory of their own again."""
    for name in names:
        if map_file is not None:
            map_file(arrays[name], -1, 0)


@dataclass(frozen=True)
class _Mapping:
    """An open packed file and the memory that it may be laid over."""

    file: int
    data_begin: int
    arrays: Mapping[str, np.ndarray]
    map_file: MapFile

    def lay(self, entries: Sequence[PackedEntry]) -> set[str]:
        """Map Parameters; return the names of those that lie in huge pages, the others are not.

        What the page cache holds in small pages, as it does where plain reads brought it there or
        only a part of a huge page is left, is dropped from it and read from the disk once more.
        From a fast disk that takes a fraction of the time of copying, in most of which the system
        clears memory.
        """
        self._map(entries)
        small = self._in_small_pages(entries)
        self._drop(small)
        self._map(small)
        still_small = {entry.name for entry in self._in_small_pages(small)}
        unmap(still_small, self.arrays, self.map_file)
        return {entry.name for entry in entries} - still_small

    def _map(self, entries: Sequence[PackedEntry]) -> None:
        for entry in entries:
            self.map_file(self.arrays[entry.name], self.file, self.data_begin + entry.begin)

    def _drop(self, entries: Sequence[PackedEntry]) -> None:
        """Drop what no process has mapped from the page cache."""
        unmap([entry.name for entry in entries], self.arrays, self.map_file)
        for entry in entries:
            num_bytes = entry.num_bytes + -entry.num_bytes % HUGE_PAGE  # only whole pages go
            begin = self.data_begin + entry.begin
            os.posix_fadvise(self.file, begin, num_bytes, os.POSIX_FADV_DONTNEED)

    def _in_small_pages(self, entries: Sequence[PackedEntry]) -> list[PackedEntry]:
        addresses = [self.arrays[entry.name].ctypes.data for entry in entries]
        huge_bytes = _count_huge_bytes(addresses) if entries else {}
        return [
            entry
            for entry, address in zip(entries, addresses, strict=True)
            if huge_bytes.get(address, 0)
            < _HUGE_SHARE * (entry.num_bytes - entry.num_bytes % HUGE_PAGE)
        ]


def _count_huge_bytes(addresses: Collection[int]) -> dict[int, int]:
    """Bytes in huge pages of the file mapping at each address, as far as the system tells."""
    found: dict[int, int] = {}
    address = 0
    with suppress(OSError), open("/proc/self/smaps", errors="replace") as lines:
        for line in lines:
            first, *rest = line.split(maxsplit=2)
            if not first.endswith(":"):  # "7f4c55800000-7f4c95800000 rw-p 00000000 fe:00 24 /file"
                address = int(first.split("-")[0], 16)
            elif first == "FilePmdMapped:" and address in addresses:
                found[address] = int(rest[0]) * 2**10
                if len(found) == len(addresses):
                    break  # the libraries follow, which take the system longest
    return found
