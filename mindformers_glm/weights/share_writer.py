"""Cut a checkpoint for a number of ranks: one safetensors file for each, which it reads alone.

The cuts are those of loading a whole checkpoint (core/sharding.py); share_tensors.py says what a
rank's file holds of a tensor. The source is read tensor by tensor, each for all ranks.
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import check_split, cut_blocks
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import LinearEncoder
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.system.files import MORE_TEMPLATES
from mindformers_glm.system.new_folder import new_folder
from mindformers_glm.system.progress import Progress
from mindformers_glm.system.sizes import format_bytes
from mindformers_glm.weights.checkpoint import Checkpoint, FindFormat
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules, resolve_attention_bias
from mindformers_glm.weights.share_tensors import QuantizedShare, ShareTensor, share_tensor
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

# What a folder holds besides weights: configuration and tokenizer.
_COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_SPARE_BYTES = 2**30  # of disk that is left free


def write_shares(
    folder: str | Path,
    output: Path,
    size: int,
    find_format: FindFormat | None = None,
    encoder: LinearEncoder | None = None,
    quantized_folder: Path | None = None,
) -> list[int]:
    """Write the folder `output`, which `size` ranks can load in place of the checkpoint `folder`.

    Args:
        find_format, encoder: for checkpoints that are quantized (`Checkpoint.open`,
            quantization/share_format.py); None: float ones only.
        quantized_folder: see `Checkpoint.open`.
    Returns:
        The bytes of each rank's tensors.
    Raises:
        ConfigError, CheckpointError: the checkpoint is not usable or cannot be split so.
        CheckpointError: `output` exists, cannot be written, or does not fit on the disk.
    """
    if is_share_folder(Path(folder)):
        raise CheckpointError(f"{folder} holds shares already: give the original checkpoint.")
    config = GlmConfig.from_hf(folder)
    check_split(config, size)
    with Checkpoint.open(folder, None, find_format, quantized_folder) as checkpoint:
        config = resolve_attention_bias(config, checkpoint)
        whole = build_rules(config, quantized=checkpoint.quantized)
        check_rules(whole, checkpoint)
        ranks = [TensorParallel(size, rank) for rank in range(size)]
        shares = [_list_shares(config, checkpoint, rank, encoder) for rank in ranks]
        check_repeats(whole, checkpoint)
        tell_surplus(whole, checkpoint)
        sizes = [sum(map(_count_bytes, share.values())) for share in shares]
        _check_place(output, sum(sizes))
        try:
            with new_folder(output) as temporary:
                copy_other_files(checkpoint.folder, temporary)
                _write_files(checkpoint, shares, ranks, temporary, sum(sizes))
                description = _write_description(checkpoint, shares[0], encoder, temporary)
                _write_manifest(checkpoint, ranks, description, temporary)
        except OSError as problem:
            raise CheckpointError(f"Cannot write {output}: {problem.strerror}.") from None
    return sizes


def _list_shares(
    config: GlmConfig,
    checkpoint: Checkpoint,
    rank: TensorParallel,
    encoder: LinearEncoder | None,
) -> dict[str, ShareTensor]:
    """What one rank's file holds, by a tensor of each source, in the order they lie on disk."""
    rules = build_rules(config, cut_blocks(config, rank), checkpoint.quantized)
    sources = {source.first_tensor: source for rule in rules for source in rule.sources}
    return {
        name: share_tensor(checkpoint, sources[name], encoder)
        for name in checkpoint.entries
        if name in sources
    }


def _count_bytes(share: ShareTensor) -> int:
    return sum(tensor.num_bytes for tensor in share.tensors)


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


def copy_other_files(folder: Path, target: Path, more_suffixes: tuple[str, ...] = ()) -> None:
    """Copy what a checkpoint's folder holds besides weights: configuration and tokenizer."""
    suffixes = (*_COPIED_SUFFIXES, *more_suffixes)
    for file in sorted(folder.iterdir()):
        is_index = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in suffixes and not is_index:
            shutil.copyfile(file, target / file.name)
    for file in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        (target / MORE_TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(file, target / MORE_TEMPLATES / file.name)


def _write_files(
    checkpoint: Checkpoint,
    shares: Sequence[dict[str, ShareTensor]],
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
                share[name].write(file)
                bar.advance(_count_bytes(share[name]))
            checkpoint.release(name)
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def _encode_header(
    checkpoint: Checkpoint, share: dict[str, ShareTensor], rank: TensorParallel
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
    begin = 0
    for tensor in (tensor for source in share.values() for tensor in source.tensors):
        end = begin + tensor.num_bytes
        place = {"shape": list(tensor.shape), "data_offsets": [begin, end]}
        header[tensor.name] = {"dtype": tensor.dtype} | place
        begin = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin on a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded


def _write_description(
    checkpoint: Checkpoint,
    shares: dict[str, ShareTensor],
    encoder: LinearEncoder | None,
    folder: Path,
) -> str | None:
    """Say how layers are quantized; the name of the file, None where they are not."""
    if checkpoint.quantized is None or encoder is None:
        return None
    layers = {
        share.layer: share.scheme for share in shares.values() if isinstance(share, QuantizedShare)
    }
    described = encoder.describe(checkpoint.quantized.tool, layers)
    (folder / encoder.description_name).write_text(json.dumps(described, indent=1) + "\n")
    return encoder.description_name


def _write_manifest(
    checkpoint: Checkpoint, ranks: Sequence[TensorParallel], description: str | None, folder: Path
) -> None:
    paths = [folder / share_name(rank) for rank in ranks]
    files = [ShareFile(path.name, path.stat().st_size, header_digest(path)) for path in paths]
    manifest = ShareManifest(
        FORMAT_VERSION, len(ranks), checkpoint.identity, tuple(files), description
    )
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.to_json(), indent=2) + "\n")
