"""What stands at the beginning of a packed file (packed_file.py): which Parameter lies where."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HUGE_PAGE = 2 * 2**20
PIECE_BYTES = 64 * 2**20  # what a checksum is of
_MAGIC = b"GLMPACK1"  # the last character is the version of this layout
_PREFIX_BYTES = 8 + 8 + 32
_MAX_HEADER_BYTES = 100_000_000
_PAGE = 4096
_TUPLES = ("shape", "checksums", "page_checksums")  # of a PackedEntry; JSON has lists


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
        num_pieces = -(-array.nbytes // PIECE_BYTES)
        blank = ("0" * 8,) * num_pieces
        entries.append(
            PackedEntry(name, str(array.dtype), array.shape, begin, array.nbytes, blank, blank)
        )
        begin += array.nbytes
    encoded_bytes = _PREFIX_BYTES + len(_encode(source, key, entries))
    return PackedHeader(
        source, dict(key), tuple(entries), encoded_bytes + -encoded_bytes % HUGE_PAGE
    )


def encode_header(header: PackedHeader) -> bytes:
    """The bytes that the file begins with."""
    encoded = _encode(header.source, header.key, header.entries)
    prefix = _MAGIC + len(encoded).to_bytes(8, "little") + hashlib.sha256(encoded).digest()
    return prefix + encoded


def decode_header(file: int) -> PackedHeader:
    """Read and check the header of an open file, and that the file has the size it says.

    Raises:
        PackedFileError: this is no whole packed file.
    """
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
        PackedEntry(**(fields | {name: tuple(fields[name]) for name in _TUPLES}))
        for fields in content["parameters"]
    )
    begin = _PREFIX_BYTES + header_bytes
    header = PackedHeader(content["source"], content["key"], entries, begin + -begin % HUGE_PAGE)
    if file_bytes != header.file_bytes:
        raise PackedFileError(f"it has {file_bytes} bytes instead of {header.file_bytes}")
    return header


def _alignment(num_bytes: int) -> int:
    return HUGE_PAGE if num_bytes >= HUGE_PAGE else _PAGE


def _encode(source: str, key: Mapping[str, Any], entries: Sequence[PackedEntry]) -> bytes:
    parameters = [vars(entry) for entry in entries]
    return json.dumps({"source": source, "key": dict(key), "parameters": parameters}).encode()
