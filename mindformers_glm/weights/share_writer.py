"""Cut a checkpoint for a number of ranks: one safetensors file for each, which it reads alone.

The cuts are those of loading a whole checkpoint (core/sharding.py): a tensor of a rank's file is
the stacked pieces that the rank would have read, and what it needs for their scales (shares.py).
The source is read once, tensor by tensor.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import check_split, cut_blocks
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.sharding import LARGEST_GROUP, Piece, TensorParallel, widen
from mindformers_glm.system.new_folder import new_folder
from mindformers_glm.system.progress import Progress
from mindformers_glm.system.sizes import format_bytes
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import (
    SourceTensor,
    build_rules,
    check_rules,
    count_bytes,
    resolve_attention_bias,
)
from mindformers_glm.weights.shares import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    ShareFile,
    ShareManifest,
    header_digest,
    is_share_folder,
    share_name,
)
from mindformers_glm.weights.surplus import check_repeats, tell_surplus
from mindformers_glm.weights.tensor_view import ROW_MAXIMA

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# What a folder holds besides weights: configuration and tokenizer.
_COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_SPARE_BYTES = 2**30  # of disk that is left free


def write_shares(folder: str | Path, output: Path, size: int) -> int:
    """Write the folder `output`, which `size` ranks can load in place of the checkpoint `folder`.

    Returns:
        The bytes of all ranks' files.
    Raises:
        ConfigError, CheckpointError: the checkpoint is not usable or cannot be split so.
        CheckpointError: `output` exists, cannot be written, or does not fit on the disk.
    """
    if is_share_folder(Path(folder)):
        raise CheckpointError(f"{folder} holds shares already: give the original checkpoint.")
    config = GlmConfig.from_hf(folder)
    check_split(config, size)
    with Checkpoint.open(folder) as checkpoint:
        config = resolve_attention_bias(config, checkpoint)
        ranks = [TensorParallel(size, rank) for rank in range(size)]
        shares = [_list_sources(config, checkpoint, rank) for rank in ranks]
        whole = build_rules(config)
        check_repeats(whole, checkpoint)
        tell_surplus(whole, checkpoint)
        num_bytes = sum(
            count_bytes(source, checkpoint) for share in shares for source in share.values()
        )
        _check_place(output, num_bytes)
        try:
            with new_folder(output) as temporary:
                _copy_other_files(checkpoint.folder, temporary)
                _write_files(checkpoint, shares, ranks, temporary, num_bytes)
                _write_manifest(checkpoint, ranks, temporary)
        except OSError as problem:
            raise CheckpointError(f"Cannot write {output}: {problem.strerror}.") from None
    return num_bytes


def _list_sources(
    config: GlmConfig, checkpoint: Checkpoint, rank: TensorParallel
) -> dict[str, SourceTensor]:
    """The tensors of one rank's file, in the order they lie in the checkpoint."""
    rules = build_rules(config, cut_blocks(config, rank))
    check_rules(rules, checkpoint)
    sources = {source.name: source for rule in rules for source in rule.sources}
    return {
        name: replace(sources[name], pieces=tuple(_widen_columns(sources[name])))
        for name in checkpoint.entries
        if name in sources
    }


def _widen_columns(source: SourceTensor) -> Iterator[Piece]:
    for piece in source.pieces:
        if piece.columns is None:
            yield piece
        else:
            yield Piece(piece.rows, widen(piece.columns, source.shape[1], LARGEST_GROUP))


def _check_place(output: Path, num_bytes: int) -> None:
    if output.exists():
        raise CheckpointError(f"{output} exists: remove it, or give another --output.")
    if not output.parent.is_dir():
        raise CheckpointError(f"The folder {output.parent} does not exist: create it first.")
    free = shutil.disk_usage(output.parent).free
    if free < num_bytes + _SPARE_BYTES:
        raise CheckpointError(
            f"{output} needs {format_bytes(num_bytes)} of disk and 1 GB to spare, "
            f"{format_bytes(free)} are free: give a place on another disk with --output."
        )


def _copy_other_files(folder: Path, target: Path) -> None:
    for file in sorted(folder.iterdir()):
        is_index = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COPIED_SUFFIXES and not is_index:
            shutil.copyfile(file, target / file.name)


def _write_files(
    checkpoint: Checkpoint,
    shares: Sequence[dict[str, SourceTensor]],
    ranks: Sequence[TensorParallel],
    folder: Path,
    num_bytes: int,
) -> None:
    with ExitStack() as stack, Progress("Cutting weights", num_bytes, "B") as bar:
        files = [stack.enter_context((folder / share_name(rank)).open("wb")) for rank in ranks]
        for rank, share, file in zip(ranks, shares, files, strict=True):
            file.write(_encode_header(checkpoint, share, rank))
        for name in shares[0]:
            for share, file in zip(shares, files, strict=True):
                bar.advance(_write_tensor(checkpoint, share[name], file))
            checkpoint.release(name)
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def _write_tensor(checkpoint: Checkpoint, source: SourceTensor, file: BinaryIO) -> int:
    """Write a tensor's pieces and, where columns are left out, its row maxima.

    Returns:
        The bytes of the pieces.
    """
    num_bytes, row_maxima = 0, []
    for piece in source.pieces:
        view = checkpoint.view(source.name, piece)
        for first, rows in view.row_chunks():
            num_bytes += file.write(rows.reshape(-1).view(np.uint8).data)
            row_maxima.append(view.row_maxima(first, first + len(rows)))
    for maxima in row_maxima:
        if maxima is not None:
            file.write(maxima.data)
    return num_bytes


def _encode_header(
    checkpoint: Checkpoint, share: dict[str, SourceTensor], rank: TensorParallel
) -> bytes:
    """The bytes before the tensors, which name the source and the rank besides the tensors."""
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",
            "source": checkpoint.identity,
            "rank": str(rank.rank),
            "model_parallel": str(rank.size),
        }
    }
    header |= dict(_describe_tensors(checkpoint, share))
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin on a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded


def _describe_tensors(
    checkpoint: Checkpoint, share: dict[str, SourceTensor]
) -> Iterator[tuple[str, dict[str, Any]]]:
    begin = 0
    for name, source in share.items():
        end = begin + count_bytes(source, checkpoint)
        shape = [sum(len(piece.rows) for piece in source.pieces)]
        if (columns := source.pieces[0].columns) is not None:
            shape.append(len(columns))
        code = _CODES[checkpoint.entries[name].dtype]
        yield name, {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
        begin = end
        if len(shape) > 1 and shape[1] < source.shape[1]:
            end += 4 * shape[0]
            described = {"dtype": "F32", "shape": shape[:1], "data_offsets": [begin, end]}
            yield name + ROW_MAXIMA, described
            begin = end


def _write_manifest(checkpoint: Checkpoint, ranks: Sequence[TensorParallel], folder: Path) -> None:
    paths = [folder / share_name(rank) for rank in ranks]
    files = [ShareFile(path.name, path.stat().st_size, header_digest(path)) for path in paths]
    manifest = ShareManifest(FORMAT_VERSION, len(ranks), checkpoint.identity, tuple(files))
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.to_json(), indent=2) + "\n")
