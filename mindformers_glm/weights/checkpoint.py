"""A Hugging Face checkpoint folder: which tensor lies where, and memory-mapped views of them.

`Checkpoint.open` reads headers and the index only, so a broken download is told before the long
work. Views cost no memory of their own: they are the file's pages, dropped again by `release`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from mindformers_glm.config.glm_config import QUANTIZED_HINT, GlmConfig
from mindformers_glm.config.partition import cut_blocks, keep_blocks
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import (
    CheckpointFormat,
    QuantizedLinear,
    StoredTensors,
)
from mindformers_glm.core.sharding import BlockCuts, Piece, TensorParallel
from mindformers_glm.system.files import require_folder
from mindformers_glm.weights.mapped_files import Identity, MappedFiles, read_identity
from mindformers_glm.weights.numpy_set import has_numpy_set, lay_over, read_numpy_set
from mindformers_glm.weights.quantized_view import QuantizedView
from mindformers_glm.weights.shards import find_shards, has_shards, no_shards, single_file
from mindformers_glm.weights.shares import find_share
from mindformers_glm.weights.tensor_entry import TensorEntry
from mindformers_glm.weights.tensor_view import ROW_MAXIMA, CutColumns, TensorView

# NumPy has no bfloat16: its bits travel as uint16.
_NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
# Nor FP8; these are what quantized layers are made of besides.
_ARRAY_DTYPES = _NUMPY_DTYPES | {
    **{name: getattr(np, name) for name in ("int8", "uint8", "int32", "int64", "float64")},
    "float8_e4m3": np.uint8,
}
FindFormat = Callable[[Path, StoredTensors], CheckpointFormat | None]


class Checkpoint:
    """The tensors of a checkpoint folder, by name.

    entries: every tensor of every shard, in file order.
    files: the shards, sorted by name.
    file_format: how they are written, for people.
    is_share: the tensors are one rank's share already (weights/shares.py).
    quantized: what a quantizing tool has made of the linear layers; None: all are float.
    """

    def __init__(
        self,
        folder: Path,
        entries: dict[str, TensorEntry],
        identities: dict[Path, Identity],
        file_format: str,
        is_share: bool = False,
    ) -> None:
        self.folder = folder
        self.is_share = is_share
        self._row_maxima = _find_row_maxima(entries) if is_share else {}
        self.files = list(identities)
        self.entries = {
            name: entry for name, entry in entries.items() if name not in self._row_maxima
        }
        self.file_format = file_format
        self.quantized: CheckpointFormat | None = None
        self._identities = identities
        self._mapped = MappedFiles(identities)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        tensor_parallel: TensorParallel | None = None,
        find_format: FindFormat | None = None,
        quantized_folder: Path | None = None,
    ) -> "Checkpoint":
        """Read the index and all headers of `folder`.

        Args:
            tensor_parallel: the rank that reads, which matters where the folder holds a file for
                each; None: a single one.
            find_format: tells how linear layers are quantized (quantization/stored_format.py);
                None: whoever opens it can use float ones only.
            quantized_folder: where quantized weights are, if not in `folder`: all weights, or a
                set of .npy files, beside which `folder` has the float ones.
        Raises:
            CheckpointError: the folder, its index or a shard is missing, broken or contradictory,
                or made for another number of ranks; both folders are quantized.
            UnsupportedError: it has quantized .npy files, which nobody can use here.
        """
        path = require_folder(folder, CheckpointError)
        place = require_folder(quantized_folder or path, CheckpointError)
        has_set = has_numpy_set(place)
        if has_set and find_format is None:
            raise UnsupportedError(f"{place} is quantized (.npy files), but {QUANTIZED_HINT}.")
        of_set = read_numpy_set(place) if has_set else []
        share = find_share(path, tensor_parallel or TensorParallel())
        if share is not None and (of_set or quantized_folder is not None):
            raise CheckpointError(
                f"{path} is cut for each rank, and {place} is not: give the float checkpoint that "
                "it was cut from."
            )
        if quantized_folder is not None and find_format is not None and not place.samefile(path):
            _refuse_quantized(path, place, find_format)
        if share is not None:
            shards = single_file(share)
        elif of_set and not has_shards(path):
            shards = no_shards()
        else:
            shards = find_shards(path if of_set else place)
        entries: dict[str, TensorEntry] = {}
        identities = {entry.file: read_identity(entry.file) for entry in of_set}
        for file in shards.files:
            identities[file] = read_identity(file)
            for entry in shards.format.read(file):
                if entry.name in entries:
                    raise CheckpointError(
                        f"Tensor {entry.name!r} is in both {entries[entry.name].file} and {file}: "
                        "remove the shard that does not belong here."
                    )
                entries[entry.name] = entry
        shards.check_index(path if of_set else place, entries)
        file_format = "NumPy" if of_set else shards.format.name
        if of_set:
            entries = lay_over(entries, of_set)
        opened = cls(path, entries, identities, file_format, is_share=share is not None)
        if find_format is not None:
            opened.quantized = find_format(place, opened)
        if quantized_folder is not None and opened.quantized is None:
            raise CheckpointError(f"{place} holds no quantized weights: give the folder that does.")
        return opened

    def cuts(self, config: GlmConfig, tensor_parallel: TensorParallel) -> BlockCuts:
        """What a rank takes of the tensors: its share, or all where the file is its share.

        Raises:
            CheckpointError: the file has the columns of groups, and equal parts are wanted.
        """
        cuts = cut_blocks(config, tensor_parallel)
        if not self.is_share:
            return cuts
        stored = replace(tensor_parallel, has_equal_parts=False)
        if cuts != cut_blocks(config, stored):
            raise CheckpointError(
                f"{self.folder} was cut by scripts/process_weights.py between groups of inner "
                f"columns, this backend needs {config.in_file_keys('intermediate_size')}="
                f"{config.intermediate_size} in {tensor_parallel.size} equal parts: give the "
                "original checkpoint (--auto_trans_ckpt True), of which each rank reads its part."
            )
        return keep_blocks(config, tensor_parallel)

    @property
    def identity(self) -> str:
        """A digest of the files' names, sizes, times of change and headers."""
        digest = hashlib.sha256()
        for file, (size, time_ns) in self._identities.items():
            digest.update(f"{file.name} {size} {time_ns}\n".encode())
        for entry in self.entries.values():
            place = f"{entry.file.name} {entry.begin} {entry.end}"
            digest.update(f"{entry.name} {entry.dtype} {entry.shape} {place}\n".encode())
        return digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.num_bytes for entry in self.entries.values())

    @property
    def num_bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of all tensors of each dtype, the largest first."""
        counter: Counter[str] = Counter()
        for entry in self.entries.values():
            counter[entry.dtype] += entry.num_bytes
        return dict(counter.most_common())

    @property
    def dtype(self) -> str:
        """The floating-point type most bytes are stored in: what "as stored" means."""
        floats = [dtype for dtype in self.num_bytes_by_dtype if dtype in DTYPE_BYTES]
        if not floats:
            raise CheckpointError(
                f"{self.folder} holds no tensor of type {', '.join(DTYPE_BYTES)}."
            )
        return floats[0]

    def view(self, name: str, piece: Piece | None = None) -> TensorView:
        """Map one tensor, without copying.

        Args:
            piece: the part of it that is wanted; None: all.
        Raises:
            CheckpointError: the file changed since its header was read, or the tensor is not
                floating-point.
        """
        entry = self.entries[name]
        if entry.dtype not in _NUMPY_DTYPES:
            raise CheckpointError(
                f"Tensor {name!r} in {entry.file} is {entry.dtype}, not one of "
                f"{', '.join(_NUMPY_DTYPES)}."
            )
        dtype = np.dtype(_NUMPY_DTYPES[entry.dtype])
        pages = self._mapped.pages(entry.file)
        if entry.num_bytes == 0:
            return TensorView(name, entry.dtype, np.empty(entry.shape, dtype), lambda *_: None)
        data = np.frombuffer(
            pages, dtype, count=entry.num_bytes // dtype.itemsize, offset=entry.begin
        )
        data = data.reshape(entry.shape)
        row_bytes = entry.num_bytes // entry.shape[0] if entry.shape else entry.num_bytes
        start = entry.begin
        if piece is not None:
            data = data[piece.rows.start : piece.rows.stop]
            start += piece.rows.start * row_bytes
        cut = None
        if piece is not None and piece.columns is not None:
            cut = self._cut_columns(name, data, piece)
            data = data[:, piece.columns.start : piece.columns.stop]

        def release_rows(begin: int, end: int) -> None:
            self._mapped.release(entry.file, start + begin * row_bytes, start + end * row_bytes)

        return TensorView(name, entry.dtype, data, release_rows, cut)

    def array(self, name: str) -> np.ndarray:
        """Map one tensor of any type: bfloat16 becomes float32, a copy, and FP8 is uint8.

        Raises:
            CheckpointError: as `view`; or its type is none that weights have.
        """
        entry = self.entries[name]
        if entry.dtype not in _ARRAY_DTYPES:
            raise CheckpointError(f"Tensor {name!r} in {entry.file} is {entry.dtype}.")
        dtype = np.dtype(_ARRAY_DTYPES[entry.dtype])
        if entry.num_bytes == 0:
            return np.empty(entry.shape, dtype)
        pages, count = self._mapped.pages(entry.file), entry.num_bytes // dtype.itemsize
        data = np.frombuffer(pages, dtype, count=count, offset=entry.begin).reshape(entry.shape)
        if entry.dtype == "bfloat16":
            return (data.astype(np.uint32) << 16).view(np.float32)
        return data

    def quantized_view(self, name: str, linear: QuantizedLinear, piece: Piece) -> QuantizedView:
        """A piece of a quantized matrix, which is read when its rows are asked for."""
        num_bytes = sum(self.entries[tensor].num_bytes for tensor in linear.tensors)

        def release() -> None:
            for tensor in linear.tensors:
                self.release(tensor)

        return QuantizedView(name, linear, piece, self.array, release, num_bytes)

    def _cut_columns(self, name: str, rows: np.ndarray, piece: Piece) -> CutColumns | None:
        assert piece.columns is not None
        stored = self._row_maxima.get(name + ROW_MAXIMA)
        if stored is None:
            is_whole = len(piece.columns) == rows.shape[1]
            return None if is_whole else CutColumns(rows, piece.columns, None)
        pages, count = self._mapped.pages(stored.file), stored.num_bytes // 4
        maxima = np.frombuffer(pages, np.float32, count=count, offset=stored.begin)
        return CutColumns(rows, piece.columns, maxima[piece.rows.start : piece.rows.stop])

    def release(self, name: str) -> None:
        """Drop the pages of one tensor from memory; a view of it stays valid and reads anew."""
        entry = self.entries[name]
        self._mapped.release(entry.file, entry.begin, entry.end)

    def close(self) -> None:
        """Close the files. Views taken before stay valid: they keep their mapping alive."""
        self._mapped.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _find_row_maxima(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The row maxima of a share, which the pages are read by without a further look.

    Raises:
        CheckpointError: they do not fit the tensor beside which they lie.
    """
    found = {name: entry for name, entry in entries.items() if name.endswith(ROW_MAXIMA)}
    for name, entry in found.items():
        tensor = entries.get(name.removesuffix(ROW_MAXIMA))
        if tensor is None or entry.dtype != "float32" or entry.shape != tensor.shape[:1]:
            raise CheckpointError(
                f"{name} in {entry.file} is not the largest magnitude of each row of a tensor: cut "
                "the original checkpoint anew with scripts/process_weights.py."
            )
    return found


def _refuse_quantized(path: Path, place: Path, find_format: FindFormat) -> None:
    """Refuse a folder with quantized weights of its own, in whose place others would run."""
    is_quantized = False
    # A folder whose weights all come from elsewhere need not have whole ones.
    with suppress(CheckpointError), Checkpoint.open(path, find_format=find_format) as own:
        is_quantized = own.quantized is not None
    if is_quantized:
        raise CheckpointError(
            f"{path} is quantized itself, and the weights of {place} (QUANT_WEIGHT_PATH) would run "
            "in the place of its own: give the float checkpoint, or unset ENABLE_QUANT and "
            "ENABLE_SPARSE."
        )
