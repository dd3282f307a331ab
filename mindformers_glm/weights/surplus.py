"""What a checkpoint holds besides the network: told in a line, and compared where it repeats it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mindformers_glm.config.adapter import find_adapter
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import JOINED_PARTS
from mindformers_glm.core.sharding import Piece
from mindformers_glm.system.log import note
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import ALL_ZEROS, find_surplus
from mindformers_glm.weights.rules import WeightRule
from mindformers_glm.weights.shards import list_files, list_names


def tell_surplus(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> None:
    """Note what of the folder is not used, a line for files and tensors, one for an adapter.

    Not what leaves nothing out: zeros, and matrices whose parts are used. `inspect` names these.
    """
    if unused := describe_surplus(rules, checkpoint, is_lost=True):
        note(f"not used of {checkpoint.folder}: {unused}")
    if adapter := find_adapter(checkpoint.folder):
        note(
            f"{checkpoint.folder} holds {adapter}, which is not applied: the base weights run; "
            "merge it with PEFT's merge_and_unload() and give the folder of the result"
        )


def describe_surplus(
    rules: Sequence[WeightRule], checkpoint: Checkpoint, is_lost: bool = False
) -> str:
    """Name surplus files and tensors by what they are; empty where there are none.

    Args:
        is_lost: only what has something to say that the network does not.
    """
    names: dict[str, list[str]] = {}
    if unread := _find_unread_files(checkpoint):
        names["other weights run in their place"] = unread
    for name, what in find_surplus(rules, checkpoint).items():
        if not (is_lost and (what == JOINED_PARTS or what.endswith(ALL_ZEROS))):
            names.setdefault(what, []).append(name)
    return "; ".join(f"{list_names(found)} ({what})" for what, found in names.items())


def _find_unread_files(checkpoint: Checkpoint) -> list[str]:
    """Weights beside those that run: float ones that quantized ones were made of, say."""
    if checkpoint.is_share:  # the others are of other ranks
        return []
    read = {file.resolve() for file in checkpoint.files}
    return [
        file.name
        for file in list_files(checkpoint.folder, "*.safetensors")
        if file.resolve() not in read
    ]


def check_repeats(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> None:
    """Compare tensors that repeat another one with it, byte by byte, a chunk at a time.

    Of a split network each rank compares the rows that are its own.

    Raises:
        CheckpointError: they differ, so nobody can tell which one is meant.
    """
    _check_zeros(rules, checkpoint)
    first_sources = Counter(rule.sources[0].name for rule in rules)
    for rule in rules:
        source = rule.sources[0]
        is_tied = first_sources[source.name] > 1
        if_both = "; if both are meant, config.json must say tie_word_embeddings false"
        for name in rule.repeats:
            if name in checkpoint.entries and not all(
                _is_equal(checkpoint, name, source.name, piece) for piece in source.pieces
            ):
                raise CheckpointError(
                    f"{name} in {checkpoint.folder} is not the same as {source.name}, which it "
                    "should repeat: export the model again, or remove the one that is wrong"
                    f"{if_both if is_tied else ''}."
                )


def _check_zeros(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> None:
    if checkpoint.quantized is None:
        return
    used = {name for rule in rules for source in rule.sources for name in source.stored}
    for name, what in checkpoint.quantized.zeros().items():
        if name not in used and checkpoint.array(name).any():
            raise CheckpointError(
                f"{name} in {checkpoint.folder} is {what} that is not zero, which the network has "
                "no place for: quantize the model again without shifting its activations."
            )


def _is_equal(checkpoint: Checkpoint, name: str, other: str, piece: Piece) -> bool:
    first, second = checkpoint.entries[name], checkpoint.entries[other]
    if (first.file, first.begin, first.end) == (second.file, second.begin, second.end):
        return True  # torch.save writes a shared tensor once
    if first.dtype != second.dtype:
        return False
    chunks = (checkpoint.view(one, piece).row_chunks() for one in (name, other))
    return all(
        np.array_equal(_as_bytes(rows), _as_bytes(other_rows))
        for (_, rows), (_, other_rows) in zip(*chunks, strict=True)
    )


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1).view(np.uint8)
