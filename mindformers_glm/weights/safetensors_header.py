"""Read and check the header of one safetensors file without touching its data.

Layout: 8 bytes little-endian header length, the header as JSON, then the tensors back to back.
Source: https://github.com/huggingface/safetensors, "Format" in README.md (0.8.0). Own reader,
because the library's NumPy loader copies every tensor: twice the memory for the whole model.
"""

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.system.files import (
    LFS_MAGIC,
    MAX_JSON_BYTES,
    lfs_pointer_message,
    open_file,
    parse_json,
)
from mindformers_glm.weights.tensor_entry import TensorEntry

_MAX_DIMENSIONS = 64
_MAX_SIZE = 2**63 - 1
_DTYPES = {  # name in the file -> (name used here, bytes of an element)
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}


def read_header(path: Path) -> list[TensorEntry]:
    """List the tensors of a safetensors file in the order they lie in it.

    Raises:
        CheckpointError: the file is unreadable, a Git-LFS pointer, cut off, too long, or its
            header is not what the format asks for (dtype, shape, gap- and overlap-free offsets).
    """
    try:
        with open_file(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            header_bytes = _read_header_bytes(file, path, file_bytes)
    except OSError as problem:
        raise CheckpointError(f"Cannot read {path}: {problem.strerror}.") from None
    data_begin = 8 + len(header_bytes)
    header = _parse(header_bytes, path)
    entries = [
        _read_entry(name, description, path, data_begin)
        for name, description in header.items()
        if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(entries, path, data_begin, file_bytes)
    return entries


def _read_header_bytes(file: BinaryIO, path: Path, file_bytes: int) -> bytes:
    start = file.read(len(LFS_MAGIC))
    if start == LFS_MAGIC:
        raise CheckpointError(lfs_pointer_message(path))
    if file_bytes < 8:
        raise CheckpointError(
            f"{path} has only {file_bytes} bytes, too few for a safetensors file: "
            "download it again."
        )
    num_header_bytes = int.from_bytes(start[:8], "little")
    if not 2 <= num_header_bytes <= MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path} is not a safetensors file (its header would be {num_header_bytes} bytes "
            "long): download it again."
        )
    if 8 + num_header_bytes > file_bytes:
        raise CheckpointError(
            f"{path} is truncated inside its header: expected at least {8 + num_header_bytes} "
            f"bytes, it has {file_bytes}; download it again."
        )
    file.seek(8)
    return file.read(num_header_bytes)


def _parse(header_bytes: bytes, path: Path) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise CheckpointError(f"{path} names {twice!r} twice in its header: it is corrupt.")
        return parsed

    try:
        header = parse_json(header_bytes.decode("utf-8"), no_duplicates)
    except ValueError as problem:
        raise CheckpointError(
            f"The header of {path} is not valid JSON ({problem}): download the file again."
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"The header of {path} is not a JSON object: download it again.")
    return header


def _read_entry(name: str, description: Any, path: Path, data_begin: int) -> TensorEntry:
    try:
        code, shape = description["dtype"], description["shape"]
        begin, end = description["data_offsets"]
        is_sound = (
            isinstance(code, str)
            and isinstance(shape, list)
            and len(shape) <= _MAX_DIMENSIONS
            and all(
                type(number) is int and 0 <= number <= _MAX_SIZE for number in (*shape, begin, end)
            )
        )
    except (KeyError, TypeError, ValueError):
        is_sound = False
    if not is_sound:
        raise CheckpointError(
            f"Tensor {name!r} in {path} has no proper dtype, shape and data_offsets: "
            "the file is corrupt, download it again."
        )
    if code not in _DTYPES:
        raise CheckpointError(
            f"Tensor {name!r} in {path} has the unknown dtype {code!r}: weights must be "
            "BF16, F16 or F32."
        )
    dtype, element_bytes = _DTYPES[code]
    if end - begin != math.prod(shape) * element_bytes:
        raise CheckpointError(
            f"Tensor {name!r} in {path} takes {end - begin} bytes, but its shape {shape} in "
            f"{code} needs {math.prod(shape) * element_bytes}: the file is corrupt."
        )
    return TensorEntry(name, dtype, tuple(shape), path, data_begin + begin, data_begin + end)


def _check_layout(entries: list[TensorEntry], path: Path, data_begin: int, file_bytes: int) -> None:
    position = data_begin
    for entry in entries:
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "follows a gap"
            raise CheckpointError(
                f"Tensor {entry.name!r} in {path} {what}: the file is corrupt, download it again."
            )
        position = entry.end
    if position != file_bytes:
        what = "is truncated" if position > file_bytes else "has bytes that belong to no tensor"
        raise CheckpointError(
            f"{path} {what}: expected {position} bytes, it has {file_bytes}; download it again."
        )
