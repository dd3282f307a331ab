"""What stands at the beginning of a packed file (packed_file.py): which Parameter lies where."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mindformers_glm.system.files import MAX_JSON_BYTES, parse_json

HUGE_PAGE = 2 * 2**20
PIECE_BYTES = 64 * 2**20  # what a checksum is of
_MAGIC = b"GLMPACK1"  # the last character is the version of this layout
_PREFIX_BYTES = 8 + 8 + 32
_PAGE = 4096
_MAX_SIZE = 2**63 - 1
_MAX_DIMENSIONS = 64
_CHECKSUM = re.compile(r"[0-9a-f]{8}")
_TUPLES = ("shape", "checksums", "page_checksums")  # of a PackedEntry; JSON has lists
# Its fields, with the types that JSON has for them.
_FIELDS = {"name": str, "dtype": str, "shape": list, "begin": int, "num_bytes": int}
_FIELDS |= {"checksums": list, "page_checksums": list}


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
    if header_bytes > min(MAX_JSON_BYTES, file_bytes):
        raise PackedFileError("its header is damaged")
    encoded = os.pread(file, header_bytes, _PREFIX_BYTES)
    if hashlib.sha256(encoded).digest() != prefix[16:]:
        raise PackedFileError("its header is damaged")
    header = _decode(encoded)
    if file_bytes != header.file_bytes:
        raise PackedFileError(f"it has {file_bytes} bytes instead of {header.file_bytes}")
    return header


def _decode(encoded: bytes) -> PackedHeader:
    """Check every field: the digest beside the header is no proof that this program wrote it."""
    try:
        content = parse_json(encoded.decode())
        is_sound = isinstance(content, dict) and set(content) == {"source", "key", "parameters"}
        source, key, parameters = (content[name] for name in ("source", "key", "parameters"))
        is_sound &= isinstance(source, str) and isinstance(parameters, list)
        is_sound &= set(key) == {"identity", "format"} and isinstance(key["identity"], str)
        is_sound &= isinstance(key["format"], dict) and all(map(_is_sound, parameters))
    except (ValueError, TypeError, KeyError):
        is_sound = False
    if not is_sound:
        raise PackedFileError("its header is not one that this version writes")
    entries = tuple(
        PackedEntry(**(fields | {name: tuple(fields[name]) for name in _TUPLES}))
        for fields in parameters
    )
    overlap = any(a.begin + a.num_bytes > b.begin for a, b in pairwise(entries))
    if overlap or len({entry.name for entry in entries}) != len(entries):
        raise PackedFileError("its header names a Parameter or its bytes twice")
    begin = _PREFIX_BYTES + len(encoded)
    return PackedHeader(source, key, entries, begin + -begin % HUGE_PAGE)


def _is_sound(fields: Any) -> bool:
    if not isinstance(fields, dict) or {k: type(v) for k, v in fields.items()} != _FIELDS:
        return False
    shape, begin, num_bytes = fields["shape"], fields["begin"], fields["num_bytes"]
    num_pieces = -(-num_bytes // PIECE_BYTES)
    return (
        len(shape) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size <= _MAX_SIZE for size in shape)
        and 0 <= begin <= _MAX_SIZE
        and 0 <= num_bytes <= _MAX_SIZE
        and begin % _alignment(num_bytes) == 0
        and all(
            len(fields[sums]) == num_pieces
            and all(isinstance(one, str) and _CHECKSUM.fullmatch(one) for one in fields[sums])
            for sums in ("checksums", "page_checksums")
        )
    )


def _alignment(num_bytes: int) -> int:
    return HUGE_PAGE if num_bytes >= HUGE_PAGE else _PAGE


def _encode(source: str, key: Mapping[str, Any], entries: Sequence[PackedEntry]) -> bytes:
    parameters = [vars(entry) for entry in entries]
    return json.dumps({"source": source, "key": dict(key), "parameters": parameters}).encode()
