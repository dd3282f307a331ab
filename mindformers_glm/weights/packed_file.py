"""One file that holds a network's Parameters as they lie in memory.

Layout: 8 bytes magic, 8 bytes little-endian length of the header, 32 bytes SHA-256 of the header,
the header as JSON (packed_header.py), then each Parameter's bytes, each on a page of its own, a
huge page if it is as large as one. What the header says of a Parameter: name, dtype, shape, where
it begins behind the header, and two checksums (CRC-32) for every 64 MiB of it: of all bytes, and of
the first and the last page. Reading looks at the pages, which costs nothing; `verify_file` looks at
all bytes, which takes as long again as reading them.
"""

import errno
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.system.new_file import new_file
from mindformers_glm.system.progress import Progress
from mindformers_glm.weights.packed_header import (
    PIECE_BYTES,
    PackedEntry,
    PackedFileError,
    PackedHeader,
    decode_header,
    encode_header,
)
from mindformers_glm.weights.packed_mapping import MapFile, map_large, unmap

SUFFIX = ".glmpack"
_PAGE = 4096

_MAX_THREADS = 8  # more do not read faster


def write_file(
    path: Path, planned: PackedHeader, arrays: Mapping[str, np.ndarray], mode: int = 0o666
) -> None:
    """Write all arrays to `path`, which appears (or is replaced) once it is complete and on disk.

    Args:
        planned: what `lay_out` says of these arrays.
        mode: who may read it, as far as the process's umask lets them.

    Raises:
        OSError: the folder takes no such file, e.g. for want of space; nothing is left behind.
    """
    with (
        new_file(path, mode, kind=f"{SUFFIX}.") as file,
        Progress("Writing the packed cache", sum(a.nbytes for a in arrays.values()), "B") as bar,
    ):
        os.truncate(file, planned.file_bytes)

        def write_piece(piece: "_Piece") -> tuple[str, str]:
            data = piece.of(arrays)
            _write(file, data, piece.position)
            return _checksum(data), _page_checksum(data)

        sums = iter(_run_in_threads(write_piece, _pieces(planned), bar))
        entries = []
        for entry in planned.entries:
            pairs = [next(sums) for _ in entry.checksums]
            entries.append(_with_checksums(entry, pairs))
        written = replace(planned, entries=tuple(entries))
        _write(file, memoryview(encode_header(written)), 0)


def read_header(path: Path) -> PackedHeader:
    """Read and check the header, and that the file has the size it says.

    Raises:
        PackedFileError: this is no whole packed file.
        FileNotFoundError: there is no such file.
    """
    with _open(path) as file:
        return decode_header(file)


def read_file(
    path: Path,
    key: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    map_file: MapFile | None = None,
    is_verified: bool = False,
) -> int:
    """Fill all arrays from `path`: mapped where that is as good as memory, else read into place.

    Args:
        map_file: maps an array of 2 MiB or more, at an offset that is a multiple of that; None:
            nothing is mapped.
        is_verified: look at all bytes, as `verify_file` does.
    Returns:
        The bytes that were mapped.
    Raises:
        PackedFileError: the file is damaged, or of other Parameters or another key. The arrays may
            then hold anything.
        FileNotFoundError: there is no such file.
    """
    with _open(path) as file:
        header = decode_header(file)
        if header.key != dict(key):
            raise PackedFileError("it was made of other files or for other settings")
        found = [(e.name, e.dtype, e.shape, e.num_bytes) for e in header.entries]
        if found != [(name, str(a.dtype), a.shape, a.nbytes) for name, a in arrays.items()]:
            raise PackedFileError("it holds other Parameters")
        with Progress("Loading weights", sum(a.nbytes for a in arrays.values()), "B") as bar:
            mapped = map_large(file, header, arrays, map_file) if map_file else set()

            def read_piece(piece: "_Piece") -> None:
                data = piece.of(arrays)
                if piece.entry.name not in mapped:
                    _read(file, data, piece.position)
                piece.check(_page_checksum(data), piece.entry.page_checksums)
                if is_verified:
                    piece.check(_checksum(data), piece.entry.checksums)

            try:
                _run_in_threads(read_piece, _pieces(header), bar)
            except BaseException:
                unmap(mapped, arrays, map_file)
                raise
    return sum(arrays[name].nbytes for name in mapped)


def verify_file(path: Path) -> None:
    """Read the whole file and compare every checksum.

    Raises:
        PackedFileError: something is damaged.
        FileNotFoundError: there is no such file.
    """
    with _open(path) as file:
        header = decode_header(file)
        total = sum(entry.num_bytes for entry in header.entries)
        with Progress("Verifying", total, "B") as bar:

            def verify_piece(piece: "_Piece") -> None:
                data = memoryview(bytearray(piece.num_bytes))
                _read(file, data, piece.position)
                piece.check(_checksum(data), piece.entry.checksums)

            _run_in_threads(verify_piece, _pieces(header), bar)


@dataclass(frozen=True)
class _Piece:
    """At most 64 MiB of one Parameter: the index-th such part of it."""

    entry: PackedEntry
    index: int
    position: int  # in the file

    @property
    def num_bytes(self) -> int:
        return min(PIECE_BYTES, self.entry.num_bytes - self.index * PIECE_BYTES)

    def of(self, arrays: Mapping[str, np.ndarray]) -> memoryview:
        begin = self.index * PIECE_BYTES
        # NumPy's bfloat16 has no buffer of its own: the bytes go by another name.
        data = arrays[self.entry.name].reshape(-1).view(np.uint8).data
        return data[begin : begin + self.num_bytes]

    def check(self, found: str, expected: Sequence[str]) -> None:
        if found != expected[self.index]:
            raise PackedFileError(f"the bytes of {self.entry.name} have changed")


def _pieces(header: PackedHeader) -> list[_Piece]:
    return [
        _Piece(entry, index, header.data_begin + entry.begin + index * PIECE_BYTES)
        for entry in header.entries
        for index in range(len(entry.checksums))
    ]


def _run_in_threads(
    work: Callable[[_Piece], Any], pieces: Sequence[_Piece], bar: Progress
) -> list[Any]:
    """Call `work` for every piece; reading, writing and checksums let other threads run."""
    results = []
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MAX_THREADS)) as pool:
        futures = [pool.submit(work, piece) for piece in pieces]
        try:
            for piece, future in zip(pieces, futures, strict=True):
                results.append(future.result())
                bar.advance(piece.num_bytes)
            return results
        finally:
            for future in futures:  # after an error or Ctrl-C: what has not begun need not
                future.cancel()


def _read(file: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        count = os.preadv(file, [data[done:]], position + done)
        if count == 0:
            raise PackedFileError("it ends too early")
        done += count


def _write(file: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], position + done)


def _checksum(data: memoryview) -> str:
    return f"{zlib.crc32(data):08x}"


def _page_checksum(data: memoryview) -> str:
    return f"{zlib.crc32(data[-_PAGE:], zlib.crc32(data[:_PAGE])):08x}"


def _with_checksums(entry: PackedEntry, pairs: Sequence[tuple[str, str]]) -> PackedEntry:
    whole, pages = (tuple(sums) for sums in zip(*pairs, strict=True)) if pairs else ((), ())
    return replace(entry, checksums=whole, page_checksums=pages)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """Open a file that only this user can have written: checksums tell damage, not intent."""
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        file = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as problem:
        is_link = problem.errno == errno.ELOOP
        reason = "it is a link" if is_link else f"it cannot be read: {problem.strerror}"
        raise PackedFileError(reason) from None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise PackedFileError("it is no ordinary file")
        if status.st_uid != os.geteuid():
            raise PackedFileError("it belongs to another user")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PackedFileError("other users may write to it")
        yield file
    except OSError as problem:
        raise PackedFileError(f"it cannot be read: {problem.strerror}") from None
    finally:
        os.close(file)
