"""The packed cache: what loading made of a checkpoint, kept in a file for the next start.

Quantizing and reading two to four times the bytes is what a start with quantized weights spends
its time on; the file holds the result. Where the weights are kept as they are stored, packing is
nearly as fast as reading, so a second copy of the checkpoint is written only if asked for.
"""

import hashlib
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.interrupts import new_folder
from mindformers_glm.system.log import detail, note
from mindformers_glm.system.sizes import format_bytes
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_file import SUFFIX, read_file, read_header, write_file
from mindformers_glm.weights.packed_header import PackedFileError, PackedHeader, lay_out
from mindformers_glm.weights.packed_mapping import MapFile

FOLDER_NAME = ".mindformers_glm_cache"
MODES = ("auto", "on", "off", "verify")
_LEAST_BYTES = 256 * 2**20  # below, loading takes no time worth a file
_WORTHWHILE_SHARE = 0.75  # of the checkpoint's bytes
_SPARE_BYTES = 2**30  # of disk that a cache leaves free


@dataclass(frozen=True)
class PackedCacheSettings:
    """Whether and where packed weights are kept.

    mode: "auto" reads a file that is there and writes one where that saves reading much more;
        "on" always writes; "off" neither reads nor writes; "verify" is "auto" that compares every
        byte with its checksum before it is used.
    folder: None: `FOLDER_NAME` in the checkpoint's folder.
    """

    mode: str = "auto"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"packed_cache must be one of {', '.join(MODES)}, got {self.mode!r}.")


class PackedCache:
    """The cache file of one checkpoint in one format.

    Args:
        weight_format: everything that the bytes of the weights in memory depend on, besides the
            checkpoint.
        arrays: the memory of every Parameter, by name.
        map_file: lets an array be a part of a file (read_file); None: it is read.

    mapped_bytes: what `read` mapped, which the system counts as memory that can be had back.
    """

    def __init__(
        self,
        settings: PackedCacheSettings,
        checkpoint: Checkpoint,
        weight_format: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        map_file: MapFile | None = None,
    ) -> None:
        self._mode = settings.mode
        self._is_own_folder = settings.folder is not None
        self._folder = settings.folder or checkpoint.folder / FOLDER_NAME
        self._checkpoint_bytes = checkpoint.num_bytes
        self._arrays = arrays
        self._map_file = map_file
        self.mapped_bytes = 0
        self._source = str(checkpoint.folder.resolve())
        self._is_share = checkpoint.is_share
        self._checkpoint_files = (*checkpoint.files, checkpoint.folder / "config.json")
        self.key = {"identity": _identify(checkpoint), "format": dict(weight_format)}
        self.file = self._folder / _file_name(self.key)

    def read(self) -> bool:
        """Fill the arrays from the file; return whether it was there and sound.

        A file that is not is told in a line; the arrays are as before then.
        """
        if self._mode == "off":
            return False
        try:
            self.mapped_bytes = read_file(
                self.file, self.key, self._arrays, self._map_file, self._mode == "verify"
            )
        except FileNotFoundError:
            return False
        except PackedFileError as problem:
            note(f"the packed cache {self.file} is not used, {problem}: the checkpoint is read")
            for array in self._arrays.values():
                array.reshape(-1).view(np.uint8).fill(0)  # packing relies on zeros in the padding
            return False
        how = "mapped" if self.mapped_bytes else "read"
        detail(f"the weights come from the packed cache {self.file}, {how}")
        return True

    def write(self) -> None:
        """Write the arrays, now filled, to the file if the settings and the disk allow it."""
        planned = lay_out(self._source, self.key, self._arrays)
        num_bytes = planned.file_bytes
        if not self._is_wanted(num_bytes):
            return
        try:
            with new_folder(self._folder):
                self._remove_outdated()
                free = shutil.disk_usage(self._folder).free
                if free < num_bytes + _SPARE_BYTES:
                    self._tell_not_written(
                        f"it needs {format_bytes(num_bytes)} and 1 GB to spare, "
                        f"{format_bytes(free)} are free"
                    )
                    return
                readers = _common_readers(self._checkpoint_files, self._folder)
                write_file(self.file, planned, self._arrays, 0o600 | readers)
        except OSError as problem:
            self._tell_not_written(problem.strerror or str(problem))
            return
        note(
            f"the packed cache {self.file} ({format_bytes(num_bytes)}) is written and makes the "
            "next start faster; packed_cache off does without, `mindformers-glm cache` lists "
            "and removes"
        )

    def _is_wanted(self, num_bytes: int) -> bool:
        if self._mode in ("on", "off"):
            return self._mode == "on"
        return _LEAST_BYTES <= num_bytes <= _WORTHWHILE_SHARE * self._checkpoint_bytes

    def _tell_not_written(self, reason: str) -> None:
        # Whoever asked for a cache or gave its folder wants to know; a checkpoint on a read-only
        # disk concerns nobody else.
        tell = note if self._mode == "on" or self._is_own_folder else detail
        tell(f"no packed cache is written to {self._folder}: {reason}")

    def _remove_outdated(self) -> None:
        """Remove files made of what this folder held before, which nobody can use any more."""
        for file, header in list_caches(self._folder):
            if isinstance(header, PackedFileError) or header.source != self._source:
                continue
            # Ranks whose shares were cut beforehand have files of their own, so each identity is
            # one rank's.
            if self._is_share and _rank_of(header.key) != _rank_of(self.key):
                continue
            if header.key["identity"] != self.key["identity"]:
                detail(f"removing {file}, the checkpoint has changed since")
                file.unlink(missing_ok=True)


def list_caches(folder: Path) -> Iterator[tuple[Path, PackedHeader | PackedFileError]]:
    """Yield what has a cache file's name in a folder, and its header or why it is not used."""
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield file, read_header(file)
        except PackedFileError as problem:
            yield file, problem
        except FileNotFoundError:  # removed by another process
            continue


def _identify(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(checkpoint.identity.encode())
    digest.update((checkpoint.folder / "config.json").read_bytes())
    if checkpoint.quantized is not None:
        # As a file beside config.json may say it: GPTQ's two versions mean other zero points.
        digest.update(checkpoint.quantized.tool.encode())
    return digest.hexdigest()


def _common_readers(files: Sequence[Path], cache_folder: Path) -> int:
    """Permission bits of the group and of others, if they may read every one of the files.

    A cache of them may lie in a folder that more people can enter than theirs.
    """
    readers = stat.S_IRGRP | stat.S_IROTH
    folder = cache_folder.stat()
    group = folder.st_gid if folder.st_mode & stat.S_ISGID else os.getegid()  # the cache's
    places = [file.resolve() for file in files]
    for status in map(os.stat, places):
        readers &= status.st_mode
        if status.st_gid != group and not readers & stat.S_IROTH:
            readers = 0
    for status in map(os.stat, {parent for place in places for parent in place.parents}):
        if not status.st_mode & (stat.S_IXGRP if status.st_gid == group else stat.S_IXOTH):
            readers &= ~stat.S_IRGRP
        if not status.st_mode & stat.S_IXOTH:
            readers &= ~stat.S_IROTH
    return readers


def _rank_of(key: Mapping[str, Any]) -> tuple[Any, Any]:
    return key["format"].get("model_parallel"), key["format"].get("model_parallel_rank")


def describe_format(weight_format: Mapping[str, Any]) -> dict[str, str]:
    """The settings that a cache is of, for people.

    What is not set is left out, and layers are counted: a large model has hundreds, each with a
    scheme of its own.
    """
    return {
        name: _describe_layers(value) if isinstance(value, dict | list) else str(value)
        for name, value in weight_format.items()
        if value not in (None, [], {})
    }


def _describe_layers(layers: Mapping[str, Any] | Sequence[Any]) -> str:
    if not isinstance(layers, Mapping):
        return f"{len(layers)} layer{'s' * (len(layers) > 1)}"
    names = Counter(
        str(scheme.get("name")) if isinstance(scheme, Mapping) else "float"
        for scheme in layers.values()
    )
    return " and ".join(f"{count} {name}" for name, count in names.most_common())


def _file_name(key: Mapping[str, Any]) -> str:
    """A name that tells people what it is, and is another one for every key."""
    words = describe_format(key["format"]).values()
    label = re.sub(r"[^\w.-]+", "_", "-".join(words))[:100]
    digest = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:12]
    return f"{label}-{digest}{SUFFIX}"
