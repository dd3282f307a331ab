"""Bytes of the tensors of a GGUF file, from its header.

The format: docs/gguf.md of ggml (version 3). gguf's own reader makes an array for each of the
vocabulary's half million strings, which takes a quarter of a minute.
"""

import mmap
import struct
from pathlib import Path

_STRING, _ARRAY = 8, 9
# Type of a value -> its bytes.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_ALIGNMENT_KEY = b"general.alignment"
_ALIGNMENT = 32


def read_tensor_bytes(path: Path) -> dict[str, int]:
    """Bytes of each tensor by name, with the padding behind it.

    Raises:
        ValueError: it is no GGUF file of a known version.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, version, num_tensors, num_pairs = struct.unpack_from("<4sIQQ", data)
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path} is no GGUF file of version 2 or 3")
        end, alignment = 24, _ALIGNMENT
        for _ in range(num_pairs):
            key, end = _read_string(data, end)
            (kind,) = struct.unpack_from("<I", data, end)
            if key == _ALIGNMENT_KEY:
                (alignment,) = struct.unpack_from("<I", data, end + 4)
            end = _skip(data, end + 4, kind)
        begins = {}
        for _ in range(num_tensors):
            name, end = _read_string(data, end)
            (num_axes,) = struct.unpack_from("<I", data, end)
            end += 4 + 8 * num_axes + 4  # the shape and the type
            (begins[name.decode()],) = struct.unpack_from("<Q", data, end)
            end += 8
        whole = len(data) - -(-end // alignment) * alignment
    names = sorted(begins, key=begins.__getitem__)
    ends = [begins[name] for name in names[1:]] + [whole]
    return {name: stop - begins[name] for name, stop in zip(names, ends, strict=True)}


def _read_string(data: mmap.mmap, begin: int) -> tuple[bytes, int]:
    """A string, and where it ends."""
    (length,) = struct.unpack_from("<Q", data, begin)
    return data[begin + 8 : begin + 8 + length], begin + 8 + length


def _skip(data: mmap.mmap, begin: int, kind: int) -> int:
    """Where a value ends."""
    if kind == _STRING:
        return begin + 8 + int(struct.unpack_from("<Q", data, begin)[0])
    if kind != _ARRAY:
        return begin + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, begin)
    begin += 12
    if inner in _SIZES:
        return begin + int(count) * _SIZES[inner]
    for _ in range(count):
        begin = _skip(data, begin, inner)
    return begin
