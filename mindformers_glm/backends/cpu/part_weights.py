"""The weights of a network as the CPU's operators take them, in NumPy arrays alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindformers_glm.backends.cpu import tile_packing
from mindformers_glm.backends.cpu.allocation import allocate
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.rounding import round_to_dtype
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.rules import WeightRule, build_rules

_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class PartWeight:
    """One parameter; a target of the weights' loader.

    Attributes:
        array: of `dtype`: tiles of a matrix, or rows.
        num_rows: of the matrix whose tiles they are; None: they are rows.
    """

    array: np.ndarray
    dtype: str
    num_rows: int | None = None

    def load(self, views: Sequence[Any]) -> None:
        """Take pieces of a checkpoint, to be stacked on axis 0."""
        start = 0
        for view in views:
            for first, rows in view.row_chunks():
                self._put(start + first, rows, view.dtype)
            start += len(view.data)

    def _put(self, start: int, rows: np.ndarray, dtype: str) -> None:
        if self.num_rows is None:
            tile_packing.convert(self.array[start : start + len(rows)], rows, self.dtype, dtype)
        else:
            tile_packing.pack_rows(self.array, rows, dtype, self.dtype, start)


def load_part_weights(
    config: GlmConfig, checkpoint: Checkpoint, dtype: str
) -> Mapping[str, PartWeight]:
    """Load a whole network.

    Args:
        dtype: matrices and biases are rounded to it; norms are float32.
    Returns:
        By the rules' names. A gate and its up projection are one matrix.
    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
    """
    rules = build_rules(config, checkpoint.cuts(config, TensorParallel()))
    weights = {rule.parameter: _allocate(rule, dtype) for rule in rules}
    load_weights(checkpoint, rules, weights, label="Loading weights to compare with")
    for name, weight in weights.items():
        if name.endswith(".bias"):
            weight.array[:] = round_to_dtype(weight.array, dtype)
    return weights


def _allocate(rule: WeightRule, dtype: str) -> PartWeight:
    pieces = [piece for source in rule.sources for piece in source.pieces]
    num_rows = sum(len(piece.rows) for piece in pieces)
    if pieces[0].columns is None:
        return PartWeight(allocate((num_rows,), "float32"), "float32")
    num_columns = len(pieces[0].columns)
    if rule.parameter == _EMBEDDING:
        return PartWeight(allocate((num_rows, num_columns), dtype), dtype)
    tiles = allocate(tile_packing.packed_shape(num_rows, num_columns), dtype)
    return PartWeight(tiles, dtype, num_rows)
