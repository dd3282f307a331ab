"""What tells a checkpoint from another one of the same shapes, without reading all of it."""

import hashlib

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.shares import read_manifest
from mindformers_glm.weights.tensor_entry import TensorEntry

# Norms are read whole (16 KiB in the 9B's float32), of each matrix a part: 5 MB of the 9B.
_SAMPLE_BYTES = 16 * 2**10


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """A digest that copies of a checkpoint have in common, on whichever machine.

    Of names, types, shapes, and the bytes in the middle of each tensor: how tensors are spread over
    files and when these were written does not matter, as it does to `Checkpoint.identity`. Where
    the checkpoint is one rank's share, it is what the share was cut from: all ranks' are alike.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if checkpoint.is_share:
        return f"cut from {read_manifest(checkpoint.folder).source}"
    digest = hashlib.sha256()
    for name, entry in sorted(checkpoint.entries.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
        digest.update(_read_sample(entry))
    return digest.hexdigest()


def _read_sample(entry: TensorEntry) -> bytes:
    num_bytes = min(entry.num_bytes, _SAMPLE_BYTES)
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.begin + (entry.num_bytes - num_bytes) // 2)
            return file.read(num_bytes)
    except OSError as problem:
        raise CheckpointError(f"Cannot read {entry.file}: {problem.strerror}.") from None
