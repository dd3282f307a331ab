"""One file that holds a network's Parameters as they lie in memory.

Layout: 8 bytes magic, 8 bytes little-endian length of the header, 32 bytes SHA-256 of the header,
the header as JSON, then each Parameter's bytes, each on a page of its own, a huge page if it is as
large as one. What the header says of
a Parameter: name, dtype, shape, where it begins behind the header, and two checksums (CRC-32) for
every 64 MiB of it: of all bytes, and of the first and the last page. Reading looks at the pages,
which costs nothing; `verify_file` looks at all bytes, which takes as long again as reading them.
"""

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.new_file import new_file
from mindformers_glm.core.progress import Progress

SUFFIX = ".glmpack"
_MAGIC = b"GLMPACK1"  # the last character is the version of this layout
_PREFIX_BYTES = 8 + 8 + 32
_MAX_HEADER_BYTES = 100_000_000
_PAGE = 4096
_HUGE_PAGE = 2 * 2**20
_HUGE_SHARE = 0.9  # of a mapped file that must lie in huge pages

# Lets an array be the part of an open file from an offset on; file -1: memory of its own again.
MapFile = Callable[[np.ndarray, int, int], None]
_PIECE_BYTES = 64 * 2**20
_MAX_THREADS = 8  # more do not read faster


class PackedFileError(Exception):
    """A packed file cannot be used; the message says why, without naming the file."""


@dataclass(frozen=True)
class PackedEntry:
    """One Parameter; `begin` counts from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    num_bytes: int
    checksums: tuple[str, ...] = ()
    page_checksums: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackedHeader:
    """What a packed file says of itself.

    source: the folder it was made of, for people.
    key: what it was made of and for, exactly; chosen by the writer.
    data_begin: where the first Parameter lies.
    """

    source: str
    key: dict[str, Any]
    entries: tuple[PackedEntry, ...]
    data_begin: int

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.data_begin + max((e.begin + e.num_bytes for e in self.entries), default=0)


def lay_out(source: str, key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PackedHeader:
    """Give every array its place in a file; the checksums are missing yet."""
    entries, begin = [], 0
    for name, array in arrays.items():
        begin += -begin % _alignment(array.nbytes)
        num_pieces = -(-array.nbytes // _PIECE_BYTES)
        blank = ("0" * 8,) * num_pieces
        entries.append(
            PackedEntry(name, str(array.dtype), array.shape, begin, array.nbytes, blank, blank)
        )
        begin += array.nbytes
    encoded_bytes = _PREFIX_BYTES + len(_encode(source, key, entries))
    return PackedHeader(
        source, dict(key), tuple(entries), encoded_bytes + -encoded_bytes % _HUGE_PAGE
    )


def write_file(path: Path, planned: PackedHeader, arrays: Mapping[str, np.ndarray]) -> None:
    """Write all arrays to `path`, which appears (or is replaced) once it is complete and on disk.

    Args:
        planned: what `lay_out` says of these arrays.

    Raises:
        OSError: the folder takes no such file, e.g. for want of space; nothing is left behind.
    """
    with (
        new_file(path) as file,
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
        header = _encode(planned.source, planned.key, entries)
        prefix = _MAGIC + len(header).to_bytes(8, "little") + hashlib.sha256(header).digest()
        _write(file, memoryview(prefix + header), 0)


def read_header(path: Path) -> PackedHeader:
    """Read and check the header, and that the file has the size it says.

    Raises:
        PackedFileError: this is no whole packed file.
        FileNotFoundError: there is no such file.
    """
    with _open(path) as file:
        return _read_header(file)


def read_file(
    path: Path,
    key: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    map_file: MapFile | None = None,
) -> int:
    """Fill all arrays from `path`: mapped where that is as good as memory, else read into place.

    Args:
        map_file: maps an array of 2 MiB or more, at an offset that is a multiple of that; None:
            nothing is mapped.
    Returns:
        The bytes that were mapped.
    Raises:
        PackedFileError: the file is damaged, or of other Parameters or another key. The arrays may
            then hold anything.
        FileNotFoundError: there is no such file.
    """
    with _open(path) as file:
        header = _read_header(file)
        if header.key != dict(key):
            raise PackedFileError("it was made of other files or for other settings")
        found = [(entry.name, entry.dtype, entry.shape) for entry in header.entries]
        if found != [(name, str(array.dtype), array.shape) for name, array in arrays.items()]:
            raise PackedFileError("it holds other Parameters")
        with Progress("Loading weights", sum(a.nbytes for a in arrays.values()), "B") as bar:
            mapped = _map_large(file, path, header, arrays, map_file) if map_file else set()

            def read_piece(piece: "_Piece") -> None:
                data = piece.of(arrays)
                if piece.entry.name not in mapped:
                    _read(file, data, piece.position)
                piece.check(_page_checksum(data), piece.entry.page_checksums)

            try:
                _run_in_threads(read_piece, _pieces(header), bar)
            except BaseException:
                _unmap(mapped, arrays, map_file)
                raise
    return sum(arrays[name].nbytes for name in mapped)


def verify_file(path: Path) -> None:
    """Read the whole file and compare every checksum.

    Raises:
        PackedFileError: something is damaged.
        FileNotFoundError: there is no such file.
    """
    with _open(path) as file:
        header = _read_header(file)
        total = sum(entry.num_bytes for entry in header.entries)
        with Progress("Verifying", total, "B") as bar:

            def verify_piece(piece: "_Piece") -> None:
                data = memoryview(bytearray(piece.num_bytes))
                _read(file, data, piece.position)
                piece.check(_checksum(data), piece.entry.checksums)

            _run_in_threads(verify_piece, _pieces(header), bar)


def _map_large(
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
        if entry.num_bytes < _HUGE_PAGE:
            continue
        mapped.add(entry.name)
        try:
            map_file(arrays[entry.name], file, header.data_begin + entry.begin)
        except RuntimeError:  # some file systems cannot map at all
            _unmap(mapped, arrays, map_file)
            return set()
        expected += entry.num_bytes - entry.num_bytes % _HUGE_PAGE
        is_first_or_last = len(mapped) == 1 or len(mapped) == _count_large(header)
        if is_first_or_last and _count_huge_bytes(path) < _HUGE_SHARE * expected:
            _unmap(mapped, arrays, map_file)
            return set()
    return mapped


def _count_large(header: PackedHeader) -> int:
    return sum(entry.num_bytes >= _HUGE_PAGE for entry in header.entries)


def _unmap(
    names: Iterable[str], arrays: Mapping[str, np.ndarray], map_file: MapFile | None
) -> None:
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


def _alignment(num_bytes: int) -> int:
    return _HUGE_PAGE if num_bytes >= _HUGE_PAGE else _PAGE


@dataclass(frozen=True)
class _Piece:
    """At most 64 MiB of one Parameter: the index-th such part of it."""

    entry: PackedEntry
    index: int
    position: int  # in the file

    @property
    def num_bytes(self) -> int:
        return min(_PIECE_BYTES, self.entry.num_bytes - self.index * _PIECE_BYTES)

    def of(self, arrays: Mapping[str, np.ndarray]) -> memoryview:
        begin = self.index * _PIECE_BYTES
        # NumPy's bfloat16 has no buffer of its own: the bytes go by another name.
        data = arrays[self.entry.name].reshape(-1).view(np.uint8).data
        return data[begin : begin + self.num_bytes]

    def check(self, found: str, expected: Sequence[str]) -> None:
        if found != expected[self.index]:
            raise PackedFileError(f"the bytes of {self.entry.name} have changed")


def _pieces(header: PackedHeader) -> list[_Piece]:
    return [
        _Piece(entry, index, header.data_begin + entry.begin + index * _PIECE_BYTES)
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
    return PackedEntry(
        entry.name, entry.dtype, entry.shape, entry.begin, entry.num_bytes, whole, pages
    )


def _encode(source: str, key: Mapping[str, Any], entries: Sequence[PackedEntry]) -> bytes:
    parameters = [vars(entry) for entry in entries]
    return json.dumps({"source": source, "key": dict(key), "parameters": parameters}).encode()


@contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise PackedFileError(f"it cannot be read: {problem.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise PackedFileError("it is no ordinary file")
        yield file
    except OSError as problem:
        raise PackedFileError(f"it cannot be read: {problem.strerror}") from None
    finally:
        os.close(file)


def _read_header(file: int) -> PackedHeader:
    file_bytes = os.fstat(file).st_size
    prefix = os.pread(file, _PREFIX_BYTES, 0)
    if prefix[:8] != _MAGIC or len(prefix) < _PREFIX_BYTES:
        raise PackedFileError("it is no packed cache of this version")
    header_bytes = int.from_bytes(prefix[8:16], "little")
    if header_bytes > min(_MAX_HEADER_BYTES, file_bytes):
        raise PackedFileError("its header is damaged")
    encoded = os.pread(file, header_bytes, _PREFIX_BYTES)
    if hashlib.sha256(encoded).digest() != prefix[16:]:
        raise PackedFileError("its header is damaged")
    content = json.loads(encoded)  # as it was written, so it has every field
    entries = tuple(
        PackedEntry(
            fields["name"],
            fields["dtype"],
            tuple(fields["shape"]),
            fields["begin"],
            fields["num_bytes"],
            tuple(fields["checksums"]),
            tuple(fields["page_checksums"]),
        )
        for fields in content["parameters"]
    )
    begin = _PREFIX_BYTES + header_bytes
    header = PackedHeader(content["source"], content["key"], entries, begin + -begin % _HUGE_PAGE)
    if file_bytes != header.file_bytes:
        raise PackedFileError(f"it has {file_bytes} bytes instead of {header.file_bytes}")
    return header
