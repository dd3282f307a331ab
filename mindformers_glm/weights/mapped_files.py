"""Memory-mapped files, whose pages are dropped again after use."""

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.system.files import open_file

_MAX_FOLIO_BYTES = 2 * 2**20  # the page cache's largest unit on x86-64 and aarch64, 4 KiB pages

# Size and modification time, as `read_identity` gives them.
Identity = tuple[int, int]


class MappedFiles:
    """Read-only shared mappings, each made on first use.

    Args:
        identities: what each file was when its header was read; a file that has changed since is
            refused.
    """

    def __init__(self, identities: Mapping[Path, Identity]) -> None:
        self._identities = identities
        self._mapped: dict[Path, _MappedFile] = {}

    def pages(self, file: Path) -> mmap.mmap:
        """Return the mapping of `file`.

        Reading a mapped page beyond the file's end kills the process (SIGBUS), so the file is
        looked at again each time.

        Raises:
            CheckpointError: the file has changed or cannot be read.
        """
        if file not in self._mapped:
            try:
                self._mapped[file] = _MappedFile(file, self._identities[file])
            except OSError as problem:
                raise CheckpointError(f"Cannot read {file}: {problem.strerror}.") from None
        self._mapped[file].check_unchanged()
        return self._mapped[file].pages

    def release(self, file: Path, begin: int, end: int) -> None:
        """Drop bytes [begin, end) of a file from memory; a view of them reads them anew."""
        if file not in self._mapped or begin == end:
            return
        # A page fault maps the whole folio around it, so reading a small norm makes up to 2 MiB of
        # its neighbours resident. Those are clean file pages too: dropping them is harmless.
        begin -= begin % _MAX_FOLIO_BYTES
        end += -end % _MAX_FOLIO_BYTES
        pages = self._mapped[file].pages
        pages.madvise(mmap.MADV_DONTNEED, begin, min(end, len(pages)) - begin)

    def close(self) -> None:
        """Close the files. Views taken before stay valid: they keep their mapping alive."""
        for mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()


class _MappedFile:
    """One mapping; the descriptor stays open to notice changes."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path, self._identity = path, identity
        self._file = open_file(path)
        try:
            self.check_unchanged()
            self.pages = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, CheckpointError):
            self._file.close()
            raise

    def check_unchanged(self) -> None:
        if read_identity(self._file.fileno()) != self._identity:
            raise CheckpointError(
                f"{self._path} changed while it was being loaded: wait until it is complete, "
                "then retry."
            )

    def close(self) -> None:
        # Not pages.close(): that fails while a view lives. The mapping goes with its last view.
        self._file.close()


def read_identity(file: Path | int) -> Identity:
    """Return (size, modification time) of a path or an open descriptor."""
    try:
        stat = os.stat(file)
    except OSError as problem:
        raise CheckpointError(f"Cannot read {file}: {problem.strerror}.") from None
    return stat.st_size, stat.st_mtime_ns
