"""What one rank of a split network holds: the sizes of its layers, what it takes of each tensor.

core/sharding.py says how a tensor is cut; here a network's own numbers are cut.
"""

from dataclasses import dataclass

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantization_scheme import QuantizationScheme
from mindformers_glm.core.sharding import (
    FFN,
    HIDDEN,
    KEY_VALUE,
    LARGEST_GROUP,
    QUERY,
    VOCAB,
    BlockCut,
    TensorParallel,
    widen,
)


@dataclass(frozen=True)
class PartitionSizes:
    """The sizes that differ on one rank from the whole network's.

    vocab_size_per_partition: the same on every rank; where the vocabulary ends before, the rest is
        padding.
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
    """Refuse to split a network where the parts could not have whole attention heads, as many each.

    Key-value heads may also be fewer than the parts: each is then held by several ranks. Inner
    columns and vocabulary need not be divided evenly.

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
    problems = []
    if config.num_attention_heads % size:
        name = config.in_file_keys("num_attention_heads")
        problems.append(f"it must divide {name}={config.num_attention_heads}")
    kv_heads = config.num_key_value_heads
    if kv_heads % size and size % kv_heads:
        name = config.in_file_keys("num_key_value_heads")
        problems.append(f"it must divide {name}={kv_heads} or be a multiple of it")
    if config.intermediate_size < size:
        name = config.in_file_keys("intermediate_size")
        problems.append(f"it must not be more than {name}={config.intermediate_size}")
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
        vocab_size_per_partition=-(-config.vocab_size // tensor_parallel.size),
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
        VOCAB: _cut_rounded_up(config.vocab_size, size, rank),
        FFN: _cut_ffn(config.intermediate_size, tensor_parallel),
        QUERY: _cut_rounded_up(config.num_attention_heads * head_dim, size, rank),
        KEY_VALUE: _cut_rounded_up(config.num_key_value_heads * head_dim, kv_size, kv_rank),
    }


def keep_blocks(config: GlmConfig, tensor_parallel: TensorParallel) -> dict[str, BlockCut]:
    """The blocks of a checkpoint that holds one rank's share already: all of them is taken.

    Columns are stored up to the borders of the largest groups (`widen`); the rank's own are taken.
    """
    return {
        name: BlockCut(_taken(cut), 0, _taken(cut), columns=_keep_columns(cut))
        for name, cut in cut_blocks(config, tensor_parallel).items()
    }


def cut_columns(config: GlmConfig, block: str, size: int) -> list[range]:
    """The columns of each rank where a block is the columns of a linear layer."""
    cuts = [cut_blocks(config, TensorParallel(size, rank))[block] for rank in range(size)]
    return [range(cut.begin, cut.end) for cut in cuts]


def matrix_columns(
    config: GlmConfig, block: str, size: int, scheme: QuantizationScheme | None
) -> list[range]:
    """The columns that each rank's matrix has, its own ones (`cut_columns`) among them.

    Quantized ones that share a scale stay together, those of other ranks as zeros: so groups begin
    and end as in the whole matrix.
    """
    own = cut_columns(config, block, size)
    if scheme is None:
        return own
    length = cut_blocks(config, TensorParallel())[block].length
    return [widen(columns, length, scheme.activation_group) for columns in own]


def _keep_columns(cut: BlockCut) -> BlockCut:
    stored = widen(range(cut.begin, cut.end), cut.length, LARGEST_GROUP)
    return BlockCut(len(stored), cut.begin - stored.start, cut.end - stored.start)


def _cut_ffn(length: int, tensor_parallel: TensorParallel) -> BlockCut:
    """Whole groups of columns where there are enough, so that no two ranks share a scale.

    Where the ranks want equal parts, they get these.
    """
    size, rank = tensor_parallel.size, tensor_parallel.rank
    has_groups = length >= LARGEST_GROUP * size and not tensor_parallel.has_equal_parts
    unit = LARGEST_GROUP if has_groups else 1
    num_units = -(-length // unit)
    begin, end = (min(-(-num_units * part // size) * unit, length) for part in (rank, rank + 1))
    return BlockCut(length, begin, end)


def _cut_rounded_up(length: int, size: int, rank: int) -> BlockCut:
    """Even parts, of which the last ones are shorter where the length cannot be divided."""
    part = -(-length // size)
    return BlockCut(length, min(rank * part, length), min((rank + 1) * part, length))


def _taken(cut: BlockCut) -> int:
    return cut.end - cut.begin
