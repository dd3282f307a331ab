"""Read which tensor lies where in a file of torch.save, without torch and without its data.

Two formats. Since PyTorch 1.6 a zip archive, its members not compressed: ROOT/data.pkl describes
the tensors, ROOT/data/KEY holds the bytes of storage KEY. Before: five pickles (magic number,
version, system, tensors, keys of storages), then the storages, each behind its length. Either way
the bytes of a storage lie in one piece, so they are mapped as those of a safetensors file are.
Source: torch 2.13, `torch/serialization.py` (`_save`, `_legacy_save`); the zip layout:
PKWARE APPNOTE 6.3.10, 4.3.7.
"""

import io
import math
import os
import struct
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.system.files import LFS_MAGIC, lfs_pointer_message, open_file
from mindformers_glm.weights.state_dict_pickle import read_pickle
from mindformers_glm.weights.tensor_entry import TensorEntry
from mindformers_glm.weights.torch_tensors import (
    StateDictError,
    Storage,
    StoredTensor,
    require_state_dict,
)

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of a long integer
_LEGACY_VERSION = 1001
# A state dict takes about 150 bytes a tensor; each byte can become sixty in memory.
_MAX_PICKLE_BYTES = 4 * 2**20
# A member takes about 100 bytes of the directory, each of which becomes ten in memory.
_MAX_DIRECTORY_BYTES = 8 * 2**20
_LOCAL_HEADER = struct.Struct("<4s22sHH")
_NOT_TORCH = (
    "is not a file of torch.save, or damaged ({}): download it again, or use .safetensors files"
)


def read_pytorch_file(path: Path) -> list[TensorEntry]:
    """List the tensors of a state dict in the order they lie in the file; some may share bytes.

    Raises:
        CheckpointError: the file is unreadable, a Git-LFS pointer, cut off, damaged, or holds
            anything but plain dense tensors by name. Nothing of it is ever run.
    """
    try:
        with open_file(path) as file:
            tensors, regions = _read_layout(file, path)
        entries = [
            _locate(name, tensor, path, regions[tensor.storage.key])
            for name, tensor in tensors.items()
        ]
    except OSError as problem:
        raise CheckpointError(f"Cannot read {path}: {problem.strerror}.") from None
    except StateDictError as problem:
        raise CheckpointError(f"{path} {problem}.") from None
    return sorted(entries, key=lambda entry: (entry.begin, entry.end))


def _read_layout(file: BinaryIO, path: Path) -> tuple[dict[str, StoredTensor], dict[str, range]]:
    """Return the tensors by name, and where each storage lies, by its key."""
    start = file.read(len(LFS_MAGIC))
    if start == LFS_MAGIC:
        raise CheckpointError(lfs_pointer_message(path))
    if start.startswith(_ZIP_MAGIC):
        return _read_zip(file)
    if start.startswith(_LEGACY_MAGIC):
        return _read_legacy(file)
    raise StateDictError(_NOT_TORCH.format("it begins otherwise"))


def _locate(name: str, tensor: StoredTensor, path: Path, region: range) -> TensorEntry:
    begin = region.start + tensor.offset * tensor.storage.element_bytes
    end = begin + math.prod(tensor.shape) * tensor.storage.element_bytes
    if end > region.stop:
        raise StateDictError(f"has fewer bytes than its tensor {name[:100]!r} needs: it is corrupt")
    return TensorEntry(name, tensor.storage.dtype, tensor.shape, path, begin, end)


def _check_size(storage: Storage, num_bytes: int) -> None:
    if num_bytes != storage.num_bytes:
        raise StateDictError(
            f"holds {num_bytes} bytes of storage {storage.key[:100]!r}, expected "
            f"{storage.num_bytes}: it is corrupt, download it again"
        )


def _read_zip(file: BinaryIO) -> tuple[dict[str, StoredTensor], dict[str, range]]:
    members, directory_begin = _read_directory(file)
    regions = {name: _find_data(file, member) for name, member in members.items()}
    _check_overlaps(members, regions, directory_begin)
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise StateDictError(_NOT_TORCH.format("it has no data.pkl"))
    byte_order = _read_member(file, members, regions, f"{roots[0]}/byteorder", default=b"little")
    if byte_order != b"little":
        raise StateDictError("was written in big-endian byte order: use .safetensors files")
    content = _read_member(file, members, regions, f"{roots[0]}/data.pkl")
    value, storages = read_pickle(io.BytesIO(content))
    found = {}
    for key, storage in storages.items():
        name = f"{roots[0]}/data/{key}"
        if name not in members:
            raise StateDictError(f"lacks its storage {key[:100]!r}: it is corrupt")
        _check_size(storage, len(regions[name]))
        found[key] = regions[name]
    return require_state_dict(value), found


def _read_directory(file: BinaryIO) -> tuple[dict[str, zipfile.ZipInfo], int]:
    """Return the members by name, and where the archive's directory begins."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            listed, directory_begin = archive.infolist(), archive.start_dir
    # BadZipFile is not all: the library lets what damaged fields lead to through as well, and
    # NotImplementedError for features of zip that torch.save does not use.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OverflowError):
        raise StateDictError(_NOT_TORCH.format("its zip directory is not readable")) from None
    members = {member.filename: member for member in listed}
    if len(members) != len(listed):
        raise StateDictError("names a member of its zip archive twice: it is corrupt")
    for name, member in members.items():
        is_plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        if not 0 <= member.header_offset < directory_begin:
            raise StateDictError(_NOT_TORCH.format("its zip directory leads out of it"))
        if not is_plain or member.compress_size != member.file_size:
            raise StateDictError(
                f"is a zip archive whose member {name[:100]!r} is compressed or encrypted, which "
                "torch.save does not do: save it with torch.save"
            )
    return members, directory_begin


class _Bounded:
    """A file of which nobody reads more at once than the directory of an archive needs."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, num_bytes: int = -1) -> bytes:
        content = self._read(min(num_bytes % 2**64, _MAX_DIRECTORY_BYTES + 1))
        if len(content) > _MAX_DIRECTORY_BYTES:
            raise StateDictError("has a zip directory larger than any state dict needs")
        return content


def _find_data(file: BinaryIO, member: zipfile.ZipInfo) -> range:
    """Where a member's bytes lie: behind its local header, whose length only that header tells."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size:
        raise StateDictError(_NOT_TORCH.format("it is cut off"))
    magic, _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    encoding = "utf-8" if member.flag_bits & 0x800 else "cp437"
    if magic != _ZIP_MAGIC or file.read(name_bytes) != member.orig_filename.encode(encoding):
        raise StateDictError(_NOT_TORCH.format("its zip headers contradict each other"))
    begin = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    return range(begin, begin + member.file_size)


def _check_overlaps(
    members: dict[str, zipfile.ZipInfo], regions: dict[str, range], directory_begin: int
) -> None:
    begins_and_ends = sorted((members[name].header_offset, regions[name].stop) for name in members)
    begins_and_ends.append((directory_begin, directory_begin))
    if any(end > begin for (_, end), (begin, _) in pairwise(begins_and_ends)):
        raise StateDictError("has members that overlap: it is corrupt, download it again")


def _read_member(
    file: BinaryIO,
    members: dict[str, zipfile.ZipInfo],
    regions: dict[str, range],
    name: str,
    default: bytes = b"",
) -> bytes:
    if name not in members:
        return default
    if members[name].file_size > _MAX_PICKLE_BYTES:
        raise StateDictError(
            f"has {members[name].file_size} bytes of {name[:100]!r}, more than any state dict needs"
        )
    file.seek(regions[name].start)
    content = file.read(members[name].file_size)
    if zlib.crc32(content) != members[name].CRC:
        raise StateDictError(f"is damaged ({name[:100]!r} has another checksum): download it again")
    return content


def _read_legacy(file: BinaryIO) -> tuple[dict[str, StoredTensor], dict[str, range]]:
    file.seek(0)
    stream = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    read_pickle(stream)  # the magic number
    version, _ = read_pickle(stream)
    system, _ = read_pickle(stream)
    value, storages = read_pickle(stream)
    keys, _ = read_pickle(stream)
    is_known = version == _LEGACY_VERSION and isinstance(system, dict) and isinstance(keys, list)
    if not is_known or system.get("little_endian") is not True:
        raise StateDictError("was written by a PyTorch or a machine of another kind")
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise StateDictError("lists other storages than its tensors need: it is corrupt")
    file_bytes = os.fstat(file.fileno()).st_size
    position = stream.tell()
    regions = {}
    for key in keys:
        file.seek(position)
        num_elements = int.from_bytes(file.read(8), "little")
        _check_size(storages[key], num_elements * storages[key].element_bytes)
        regions[key] = range(position + 8, position + 8 + storages[key].num_bytes)
        position = regions[key].stop
        if position > file_bytes:
            break
    if position != file_bytes:
        what = "is truncated" if position > file_bytes else "has bytes that belong to no tensor"
        raise StateDictError(f"{what}: it has {file_bytes} bytes, expected {position}")
    return require_state_dict(value), regions
