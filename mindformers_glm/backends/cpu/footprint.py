"""How much memory a network needs, from its config alone, so that it is known before loading."""

from collections.abc import Iterator

from mindformers_glm.backends.backend import MemoryNeed
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import matrix_columns, partition
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.sharding import FFN, QUERY

# Rows of logits at a time: 32 x 151,552 float32 are 19 MB, and as many as there may be sequences,
# up to the second number. So many are computed in the graph of the last layers, which saves a call
# and a copy, more of them in a graph of their own, which reads the head once for each part.
FEW_SAMPLES, _MOST_SAMPLES = 32, 128
# Activations of one layer that are alive at once besides qkv and the MLP's inner one: the residual
# before the layer, between its branches and after it, and a branch's output.
_LIVE_HIDDEN_STATES = 4
# Logits of the head's largest bucket, and the copy that NumPy samples from.
_LIVE_LOGITS = 2


def count_samples(settings: RunnerSettings) -> int:
    """Rows of logits that the graph of the last layers computes."""
    return min(max(FEW_SAMPLES, settings.max_num_seqs), _MOST_SAMPLES)


def count_memory(config: GlmConfig, settings: RunnerSettings) -> MemoryNeed:
    """What one rank's network takes in all."""
    return MemoryNeed(
        weights_bytes=count_weight_bytes(config, settings),
        workspace_bytes=count_workspace_bytes(config, settings),
        kv_block_bytes=count_kv_block_bytes(config, settings),
    )


def count_weight_bytes(config: GlmConfig, settings: RunnerSettings) -> int:
    """Bytes of a rank's weights in memory, up to the padding of packed matrices to full tiles.

    Norm weights and biases are float32 whatever the type.
    """
    sizes = partition(config, settings.tensor_parallel)
    embedding = sizes.vocab_size_per_partition * config.hidden_size
    linears = sum(
        _count_linear_bytes(settings, name, num_rows, num_columns)
        for name, num_rows, num_columns in _list_linears(config, settings)
    )
    num_norms = 4 if config.has_sandwich_norms else 2
    bias_size = config.attention_bias * sizes.qkv_size_per_partition
    kv_scales = 4 * settings.uses_kv_scales * sizes.kv_size_per_partition
    per_layer = num_norms * config.hidden_size + bias_size + kv_scales
    num_vectors = 1 + len(settings.shifted_norms)  # the final norm, biases of others
    vectors = config.num_hidden_layers * per_layer + num_vectors * config.hidden_size
    embedding_bytes = embedding * DTYPE_BYTES[settings.params_dtype]
    return embedding_bytes + linears + vectors * DTYPE_BYTES["float32"]


def _list_linears(config: GlmConfig, settings: RunnerSettings) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every linear layer's weight on one rank."""
    sizes = partition(config, settings.tensor_parallel)
    hidden, ffn = config.hidden_size, sizes.intermediate_size_per_partition

    def width(block: str, name: str) -> int:
        size, scheme = settings.model_parallel, settings.scheme_of(name)
        return len(matrix_columns(config, block, size, scheme)[settings.model_parallel_rank])

    for layer in range(config.num_hidden_layers):
        prefix = f"decoder.layers.{layer}"
        yield f"{prefix}.self_attention.linear_qkv", sizes.qkv_size_per_partition, hidden
        proj, fc2 = f"{prefix}.self_attention.linear_proj", f"{prefix}.mlp.linear_fc2"
        yield proj, hidden, width(QUERY, proj)
        yield f"{prefix}.mlp.linear_fc1", 2 * ffn, hidden
        yield fc2, hidden, width(FFN, fc2)
    yield "output_layer", sizes.vocab_size_per_partition, hidden


def _count_linear_bytes(
    settings: RunnerSettings, name: str, num_rows: int, num_columns: int
) -> int:
    scheme = settings.scheme_of(name)
    steps = 2 * num_columns * DTYPE_BYTES["float32"] * (name in settings.rounded_columns)
    if scheme is None:
        return num_rows * num_columns * DTYPE_BYTES[settings.params_dtype] + steps
    return scheme.count_bytes(num_rows, num_columns) + steps


def count_kv_block_bytes(config: GlmConfig, settings: RunnerSettings) -> int:
    """Bytes of one KV-cache block in all layers: the key-value heads of one rank."""
    num_heads = partition(config, settings.tensor_parallel).num_key_value_heads_per_partition
    per_layer = 2 * num_heads * settings.kv_head_bytes(config.head_dim)
    return settings.block_size * config.num_hidden_layers * per_layer


def count_workspace_bytes(config: GlmConfig, settings: RunnerSettings) -> int:
    """Bytes of activations and logits of the largest step; an upper estimate."""
    sizes = partition(config, settings.tensor_parallel)
    inner = sizes.qkv_size_per_partition + 2 * sizes.intermediate_size_per_partition
    row = _LIVE_HIDDEN_STATES * config.hidden_size + inner
    sampled_rows = min(count_samples(settings), settings.max_num_batched_tokens)
    # More rows than that are computed part by part and joined.
    all_rows = min(settings.max_num_seqs, settings.max_num_batched_tokens)
    joined_rows = all_rows if all_rows > sampled_rows else 0
    logits = (_LIVE_LOGITS * sampled_rows + joined_rows) * config.vocab_size
    rotary_table = settings.max_model_len * config.rotary_dim
    floats = settings.max_num_batched_tokens * row + logits + rotary_table
    return floats * DTYPE_BYTES["float32"]
