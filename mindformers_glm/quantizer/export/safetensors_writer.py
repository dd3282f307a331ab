"""Writes safetensors files tensor by tensor, as they come, without holding them in memory.

The header stands first and is known last: room for it is kept, and what is left of that is spaces,
which the format allows. A tensor must begin on a multiple of its elements' size, or torch cannot
look at it in place: those whose bytes are no multiple of 8 go last, the widest elements first.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mindformers_glm.quantizer.export.new_tensor import NewTensor

_CODES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
}
_ALIGNMENT = 8
# Of one tensor in a header, besides its name: dtype, two sizes and two places, in JSON.
_ENTRY_BYTES = 130


def header_room(names: Iterable[str]) -> int:
    """Bytes that the header of these tensors surely fits into."""
    return 256 + sum(len(name.encode()) + _ENTRY_BYTES for name in names)


class SafetensorsWriter:
    """Files of one folder, each of at most so many bytes of tensors, and an index of them.

    Args:
        room: bytes kept for each header (`header_room`).
        part_bytes: None: all in one file, without an index. A larger tensor has a file of its own.
    """

    def __init__(self, folder: Path, room: int, part_bytes: int | None) -> None:
        self._folder, self._part_bytes = folder, part_bytes
        self._room = room + -room % _ALIGNMENT
        self._parts: list[_Part] = []

    def add(self, tensor: NewTensor) -> None:
        """Write a tensor; its name must be new.

        Raises:
            OSError: the disk is full, say.
        """
        last = self._parts[-1] if self._parts else None
        is_full = (
            last is not None
            and self._part_bytes is not None
            and last.num_bytes + tensor.num_bytes > self._part_bytes
        )
        if last is None or is_full:
            if last is not None:
                last.close()
            last = _Part(self._folder / f"part-{len(self._parts)}.tmp", self._room)
            self._parts.append(last)
        last.add(tensor)

    def finish(self, stem: str) -> None:
        """Complete the files and name them: STEM.safetensors, or parts and an index."""
        if self._parts:
            self._parts[-1].close()
        if self._part_bytes is None:
            for part in self._parts:
                part.path.rename(self._folder / f"{stem}.safetensors")
            return
        weight_map: dict[str, str] = {}
        count = len(self._parts)
        for number, part in enumerate(self._parts, start=1):
            name = f"{stem}-{number:05d}-of-{count:05d}.safetensors"
            part.path.rename(self._folder / name)
            weight_map |= dict.fromkeys(part.names, name)
        total = sum(part.num_bytes for part in self._parts)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, ensure_ascii=False)
        (self._folder / f"{stem}.safetensors.index.json").write_text(text + "\n", encoding="utf-8")

    def abandon(self) -> None:
        """Close what is open; the files are of no use."""
        for part in self._parts:
            part.abandon()


class _Part:
    """One file."""

    def __init__(self, path: Path, room: int) -> None:
        self.path, self.num_bytes = path, 0
        self._room, self._place = room, 0
        self._header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._late: list[tuple[NewTensor, list[np.ndarray]]] = []
        self._file: BinaryIO = path.open("wb")
        self._file.seek(8 + room)

    @property
    def names(self) -> list[str]:
        return [name for name in self._header if name != "__metadata__"]

    def add(self, tensor: NewTensor) -> None:
        assert tensor.name not in self._header, tensor.name
        self.num_bytes += tensor.num_bytes
        if tensor.num_bytes % _ALIGNMENT:
            self._late.append((tensor, [chunk.copy() for chunk in tensor.chunks]))
        else:
            self._write(tensor, tensor.chunks)

    def close(self) -> None:
        """Write what was put off and the header, and see that all is on the disk."""
        for tensor, chunks in sorted(
            self._late, key=lambda late: (-late[1][0].itemsize, late[0].name)
        ):
            self._write(tensor, chunks)
        text = json.dumps(self._header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= self._room, "header_room was given too few tensors"
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _write(self, tensor: NewTensor, chunks: Iterable[np.ndarray]) -> None:
        begin = self._place
        for chunk in chunks:
            self._file.write(chunk.reshape(-1).view(np.uint8).data)
            self._place += chunk.nbytes
        assert self._place - begin == tensor.num_bytes, tensor.name
        self._header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, self._place],
        }
