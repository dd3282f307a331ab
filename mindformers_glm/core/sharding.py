"""What each rank of a tensor-parallel group holds of a network: the one place that cuts.

An axis of a checkpoint tensor is a row of named blocks, and each block is cut by itself:

    q_proj rows          (QUERY,)
    gate_up_proj rows    (FFN, FFN)              gate, then up
    query_key_value rows (QUERY, KEY_VALUE, KEY_VALUE)     ChatGLM's fused projection
    down_proj columns    (FFN,)
    any hidden axis      (HIDDEN,)               not cut

A rank's share of a tensor is therefore a few pieces of it, which stack to the smaller tensor of the
same layout. Megatron-LM's scheme (Shoeybi et al. 2019, arXiv:1909.08053): rows of the first linear
layer of a branch, columns of the second one, so that one all-reduce ends the branch.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mindformers_glm.core.errors import ConfigError

# Blocks, named as config.json gives their lengths.
HIDDEN, VOCAB, FFN = "hidden_size", "vocab_size", "intermediate_size"
QUERY, KEY_VALUE = "num_attention_heads * head_dim", "num_key_value_heads * head_dim"
# The most columns that share a scale, of weights or of activations.
LARGEST_GROUP = 128
# How the names of the layers end that are cut by columns (Megatron-LM's RowParallelLinear).
ROW_PARALLEL = ("self_attention.linear_proj", "mlp.linear_fc2")

Axis = tuple[str, ...]


@dataclass(frozen=True)
class TensorParallel:
    """Into how many parts a network is split, and which one this process holds.

    has_equal_parts: each rank has as many inner columns as the next, as a network wants that knows
        one size of them; else they are cut between groups that share a scale, so that none is torn.
    """

    size: int = 1
    rank: int = 0
    has_equal_parts: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise ConfigError(
                f"A rank must be from 0 to model_parallel - 1, got rank {self.rank} with "
                f"model_parallel {self.size}."
            )


@dataclass(frozen=True)
class BlockCut:
    """A block of an axis: how long it is where it is stored, and what of it is taken.

    columns: the same of the block as columns, where that differs: a rank's own file has columns up
        to the borders of their groups.
    """

    length: int
    begin: int
    end: int
    columns: "BlockCut | None" = None

    @property
    def as_columns(self) -> "BlockCut":
        """The cut of the block where it is the columns of a tensor."""
        return self.columns or self


BlockCuts = Mapping[str, BlockCut]


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: some of its rows, and of those some columns.

    columns: None for a tensor of one axis.
    """

    rows: range
    columns: range | None

    @property
    def num_elements(self) -> int:
        """Elements in the piece."""
        return len(self.rows) * (1 if self.columns is None else len(self.columns))


def stored_length(axis: Axis, cuts: BlockCuts) -> int:
    """Length of an axis in the checkpoint."""
    return sum(cuts[block].length for block in axis)


def stored_shape(axes: tuple[Axis, ...], cuts: BlockCuts) -> tuple[int, ...]:
    """Shape of a tensor in the checkpoint; columns are one block."""
    rows, *columns = axes
    return (stored_length(rows, cuts), *(cuts[block].as_columns.length for (block,) in columns))


def widen(columns: range, length: int, group: int) -> range:
    """The columns up to the borders of groups of `group`, which begin at column 0 of `length`."""
    return range(columns.start // group * group, min(-(-columns.stop // group) * group, length))


def cut_tensor(axes: tuple[Axis, ...], cuts: BlockCuts) -> tuple[Piece, ...]:
    """The pieces of a tensor that are taken; stacked on axis 0 they are a rank's tensor.

    Args:
        axes: one or two; columns are one block, for several would not stack.
    """
    columns = None
    if len(axes) > 1:
        _, (block,) = axes
        cut = cuts[block].as_columns
        columns = range(cut.begin, cut.end)
    pieces, start = [], 0
    for block in axes[0]:
        cut = cuts[block]
        pieces.append(Piece(range(start + cut.begin, start + cut.end), columns))
        start += cut.length
    return tuple(pieces)


def describe_axis(axis: Axis) -> str:
    """An axis by the keys of config.json that give its length: "2 * intermediate_size"."""
    counts = Counter(axis)
    return " + ".join(
        block if count == 1 else f"{count} * {block}" for block, count in counts.items()
    )
