"""Lay a packed file over the memory of Parameters instead of reading it."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from mindformers_glm.weights.packed_header import HUGE_PAGE, PackedHeader

# Lets an array be the part of an open file from an offset on; file -1: memory of its own again.
MapFile = Callable[[np.ndarray, int, int], None]
_HUGE_SHARE = 0.9  # of a mapped file that must lie in huge pages


def map_large(
    file: int,
    path: Path,
    header: PackedHeader,
    arrays: Mapping[str, np.ndarray],
    map_file: MapFile,
) -> set[str]:
    """Map the large Parameters if the system does so in huge pages; return their names.

    Linux does where the file system keeps files in such pages (ext4 since 6.16): then nothing is
    copied, and the kernels read as fast as from memory. Small pages cost 15 to 20 % of decode
    speed, so there the file is copied.
    """
    mapped: set[str] = set()
    expected = 0
    for entry in header.entries:
        if entry.num_bytes < HUGE_PAGE:
            continue
        mapped.add(entry.name)
        try:
            map_file(arrays[entry.name], file, header.data_begin + entry.begin)
        except RuntimeError:  # some file systems cannot map at all
            unmap(mapped, arrays, map_file)
            return set()
        expected += entry.num_bytes - entry.num_bytes % HUGE_PAGE
        is_first_or_last = len(mapped) == 1 or len(mapped) == _count_large(header)
        if is_first_or_last and _count_huge_bytes(path) < _HUGE_SHARE * expected:
            unmap(mapped, arrays, map_file)
            return set()
    return mapped


def _count_large(header: PackedHeader) -> int:
    return sum(entry.num_bytes >= HUGE_PAGE for entry in header.entries)


def unmap(names: Iterable[str], arrays: Mapping[str, np.ndarray], map_file: MapFile | None) -> None:
    """Give arrays fresh memory of their own again."""
    for name in names:
        if map_file is not None:
            map_file(arrays[name], -1, 0)


def _count_huge_bytes(path: Path) -> int:
    """Bytes of a file that this process has mapped in huge pages; 0 where the system is silent."""
    name, num_kibibytes, is_inside = str(path.resolve()), 0, False
    try:
        lines = Path("/proc/self/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):  # "7f4c55800000-7f4c95800000 r--p 00000000 fe:00 24 /a/file"
            is_inside = bool(rest) and rest[-1] == name
        elif is_inside and first == "FilePmdMapped:":
            num_kibibytes += int(rest[0])
    return num_kibibytes * 2**10
