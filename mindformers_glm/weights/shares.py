"""A checkpoint folder that is cut for a number of ranks already: one safetensors file for each.

`scripts/process_weights.py` writes it (weights/share_writer.py). Its manifest says for how many
ranks it was cut, and of what; each rank's file is told from any other by its size and its header,
which names the source and the rank. A tensor whose columns are cut has them up to the borders of
quantization groups, and beside it the largest magnitude of each whole row: a rank that quantizes
its share finds the same scales as one that reads the whole checkpoint. Layers that are quantized
already are there in one form of our own (quantization/share_format.py).
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.system.files import MAX_JSON_BYTES, open_file, read_json_object

MANIFEST_NAME = "model.shares.json"
FORMAT_VERSION = 2
_AGAIN = "cut the original checkpoint anew with scripts/process_weights.py"


@dataclass(frozen=True)
class ShareFile:
    """One rank's file as it was written."""

    name: str
    num_bytes: int
    header_sha256: str


@dataclass(frozen=True)
class ShareManifest:
    """What a folder of shares says of itself.

    source: identity of the checkpoint it was cut from (`Checkpoint.identity`).
    quantization: the file that says how layers are quantized; None: they are float.
    """

    format_version: int
    model_parallel: int
    source: str
    files: tuple[ShareFile, ...]
    quantization: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return asdict(self)


def share_name(tensor_parallel: TensorParallel) -> str:
    """Name of a rank's file: model-rank-00-of-02.safetensors."""
    return f"model-rank-{tensor_parallel.rank:02d}-of-{tensor_parallel.size:02d}.safetensors"


def is_share_folder(folder: Path) -> bool:
    """Whether the folder holds shares."""
    return (folder / MANIFEST_NAME).exists()


def find_share(folder: Path, tensor_parallel: TensorParallel) -> Path | None:
    """Return a rank's file, or None where the folder holds a whole checkpoint.

    Raises:
        CheckpointError: the shares are for another number of ranks, or the file is missing,
            damaged or of another folder.
    """
    if not is_share_folder(folder):
        return None
    manifest = read_manifest(folder)
    if manifest.model_parallel != tensor_parallel.size:
        raise CheckpointError(
            f"{folder} was cut for model_parallel {manifest.model_parallel}, not "
            f"{tensor_parallel.size}: run with that, or cut the original checkpoint anew with "
            f"scripts/process_weights.py --tp_size {tensor_parallel.size}."
        )
    expected = manifest.files[tensor_parallel.rank]
    path = folder / expected.name
    for name in filter(None, (expected.name, manifest.quantization)):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}: copy it too, or {_AGAIN}.")
    if path.stat().st_size != expected.num_bytes:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, {MANIFEST_NAME} says {expected.num_bytes}: "
            f"copy it again, or {_AGAIN}."
        )
    if header_digest(path) != expected.header_sha256:
        raise CheckpointError(
            f"{path} is not the file that {MANIFEST_NAME} describes: it is of another checkpoint "
            f"or another rank; {_AGAIN}."
        )
    return path


def read_manifest(folder: Path) -> ShareManifest:
    """Read and check the manifest.

    Raises:
        CheckpointError: it is broken or of another version.
    """
    path = folder / MANIFEST_NAME
    content = read_json_object(path, CheckpointError, _AGAIN)
    try:
        if content["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {content['format_version']}, this version reads "
                f"{FORMAT_VERSION}: {_AGAIN}."
            )
        files = tuple(
            ShareFile(str(file["name"]), int(file["num_bytes"]), str(file["header_sha256"]))
            for file in content["files"]
        )
        size = int(content["model_parallel"])
        source, quantization = str(content["source"]), content.get("quantization")
        manifest = ShareManifest(FORMAT_VERSION, size, source, files, quantization)
        if not isinstance(quantization, str | None) or "/" in (quantization or ""):
            raise TypeError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{path} is damaged: {_AGAIN}.") from None
    # As many files as ranks first: a number of ranks that is too large must cost nothing.
    if not 1 <= size == len(files) or [file.name for file in files] != [
        share_name(TensorParallel(size, rank)) for rank in range(size)
    ]:
        raise CheckpointError(f"{path} does not list one file for each of {size} ranks: {_AGAIN}.")
    return manifest


def header_digest(path: Path) -> str:
    """SHA-256 of what stands before the tensors in a safetensors file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with open_file(path) as file:
            prefix = file.read(8)
            num_bytes = min(int.from_bytes(prefix, "little"), MAX_JSON_BYTES)
            return hashlib.sha256(prefix + file.read(num_bytes)).hexdigest()
    except OSError as problem:
        raise CheckpointError(f"Cannot read {path}: {problem.strerror}.") from None
