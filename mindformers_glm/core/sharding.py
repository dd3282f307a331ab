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

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import ConfigError

# Blocks, named as config.json gives their lengths.
HIDDEN, VOCAB, FFN = "hidden_size", "vocab_size", "intermediate_size"
QUERY, KEY_VALUE = "num_attention_heads * head_dim", "num_key_value_heads * head_dim"

Axis = tuple[str, ...]


@dataclass(frozen=True)
class TensorParallel:
    """Into how many parts a network is split, and which one this process holds."""

    size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise ConfigError(
                f"A rank must be from 0 to model_parallel - 1, got rank {self.rank} with "
                f"model_parallel {self.size}."
            )


@dataclass(frozen=True)
class BlockCut:
    """A block of an axis: how long it is where it is stored, and what of it is taken."""

    length: int
    begin: int
    end: int


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


@dataclass(frozen=True)
class PartitionSizes:
    """The sizes that differ on one rank from the whole network's.

    vocab_begin: the first token id of this rank's rows of the embedding and the output layer.
    """

    num_attention_heads_per_partition: int
    num_key_value_heads_per_partition: int
    query_size_per_partition: int
    kv_size_per_partition: int
    intermediate_size_per_partition: int
    vocab_size_per_partition: int
    vocab_begin: int

    @property
    def qkv_size_per_partition(self) -> int:
        """Outputs of the fused query, key and value projection."""
        return self.query_size_per_partition + 2 * self.kv_size_per_partition


def check_split(config: GlmConfig, size: int) -> None:
    """Refuse to split a network into parts that are not equal.

    Key-value heads may also be fewer than the parts: each is then held by several ranks.

    Raises:
        ConfigError: names what cannot be divided, and the sizes that work.
    """
    if size < 1:
        raise ConfigError(f"A model is split into at least 1 part, got {size}.")
    if problems := _find_problems(config, size):
        works = [str(n) for n in range(1, config.num_attention_heads + 1) if can_split(config, n)]
        choices = f"{', '.join(works[:-1])} or {works[-1]}" if len(works) > 1 else works[0]
        raise ConfigError(
            f"model_parallel {size} cannot split this model, {'; '.join(problems)}: use {choices}."
        )


def can_split(config: GlmConfig, size: int) -> bool:
    """Whether `check_split` accepts it."""
    return not _find_problems(config, size)


def _find_problems(config: GlmConfig, size: int) -> list[str]:
    undivided = [
        f"{config.in_file_keys(name)}={getattr(config, name)}"
        for name in ("num_attention_heads", "intermediate_size", "vocab_size")
        if getattr(config, name) % size
    ]
    problems = [f"it must divide {' and '.join(undivided)}"] if undivided else []
    kv_heads = config.num_key_value_heads
    if kv_heads % size and size % kv_heads:
        name = config.in_file_keys("num_key_value_heads")
        problems.append(f"it must divide {name}={kv_heads} or be a multiple of it")
    return problems


def partition(config: GlmConfig, tensor_parallel: TensorParallel) -> PartitionSizes:
    """The sizes of one rank's network.

    Raises:
        ConfigError: the network cannot be split so.
    """
    cuts = cut_blocks(config, tensor_parallel)
    query, key_value = _taken(cuts[QUERY]), _taken(cuts[KEY_VALUE])
    return PartitionSizes(
        num_attention_heads_per_partition=query // config.head_dim,
        num_key_value_heads_per_partition=key_value // config.head_dim,
        query_size_per_partition=query,
        kv_size_per_partition=key_value,
        intermediate_size_per_partition=_taken(cuts[FFN]),
        vocab_size_per_partition=_taken(cuts[VOCAB]),
        vocab_begin=cuts[VOCAB].begin,
    )


def cut_blocks(config: GlmConfig, tensor_parallel: TensorParallel) -> dict[str, BlockCut]:
    """What a rank takes of each block of a whole checkpoint.

    Example: 32 query heads and 2 key-value heads of 128 on rank 1 of 4: query rows 1024 to 2047,
    which attend with key-value head 0, so key and value rows 0 to 127.

    Raises:
        ConfigError: the network cannot be split so.
    """
    check_split(config, tensor_parallel.size)
    size, rank = tensor_parallel.size, tensor_parallel.rank
    # A key-value head for several ranks: rank r has the one that its query heads attend with.
    ranks_per_kv_head = max(size // config.num_key_value_heads, 1)
    kv_size, kv_rank = size // ranks_per_kv_head, rank // ranks_per_kv_head
    head_dim, hidden = config.head_dim, config.hidden_size
    return {
        HIDDEN: BlockCut(hidden, 0, hidden),
        VOCAB: _cut_evenly(config.vocab_size, size, rank),
        FFN: _cut_evenly(config.intermediate_size, size, rank),
        QUERY: _cut_evenly(config.num_attention_heads * head_dim, size, rank),
        KEY_VALUE: _cut_evenly(config.num_key_value_heads * head_dim, kv_size, kv_rank),
    }


def keep_blocks(config: GlmConfig, tensor_parallel: TensorParallel) -> dict[str, BlockCut]:
    """The blocks of a checkpoint that holds one rank's share already: all of them is taken."""
    return {
        name: BlockCut(_taken(cut), 0, _taken(cut))
        for name, cut in cut_blocks(config, tensor_parallel).items()
    }


def stored_length(axis: Axis, cuts: BlockCuts) -> int:
    """Length of an axis in the checkpoint."""
    return sum(cuts[block].length for block in axis)


def cut_tensor(axes: tuple[Axis, ...], cuts: BlockCuts) -> tuple[Piece, ...]:
    """The pieces of a tensor that are taken; stacked on axis 0 they are a rank's tensor.

    Args:
        axes: one or two; columns are one block, for several would not stack.
    """
    columns = None
    if len(axes) > 1:
        _, (block,) = axes
        columns = range(cuts[block].begin, cuts[block].end)
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


def _cut_evenly(length: int, size: int, rank: int) -> BlockCut:
    part = length // size
    return BlockCut(length, rank * part, (rank + 1) * part)


def _taken(cut: BlockCut) -> int:
    return cut.end - cut.begin
