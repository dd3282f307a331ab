"""How much device memory upstream's network needs, from its config alone."""

from mindformers_glm.backends.ascend.split import upstream_part
from mindformers_glm.backends.backend import MemoryNeed
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import partition
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.dtypes import DTYPE_BYTES

# Rows of one layer that are alive at once besides qkv and the MLP's inner ones: the residual
# stream, its norm, a branch's output, and what a sum of the ranks is received into.
_LIVE_HIDDEN_STATES = 4
_ROTARY_TABLES = 4  # cos and sin, and upstream makes a pair for prompts and one for answers


def count_memory(config: GlmConfig, settings: RunnerSettings) -> MemoryNeed:
    """What one rank's network takes in all."""
    sizes = partition(config, upstream_part(settings.tensor_parallel))
    weight_bytes = DTYPE_BYTES[settings.params_dtype]
    row_bytes = DTYPE_BYTES[settings.compute_dtype]
    hidden, ffn = config.hidden_size, sizes.intermediate_size_per_partition
    num_norms = 4 if config.has_sandwich_norms else 2
    per_layer = (
        (sizes.qkv_size_per_partition + sizes.query_size_per_partition + 3 * ffn) * hidden
        + num_norms * hidden
        + config.attention_bias * sizes.qkv_size_per_partition
    )
    num_tables = 1 if config.tie_word_embeddings else 2
    weights = (
        config.num_hidden_layers * per_layer
        + num_tables * sizes.vocab_size_per_partition * hidden
        + hidden
    )
    inner = sizes.qkv_size_per_partition + 3 * ffn
    rows = settings.max_num_batched_tokens * (_LIVE_HIDDEN_STATES * hidden + inner)
    rotary = _ROTARY_TABLES * settings.max_model_len * config.head_dim
    # In float32 they are handed over; every sequence may be sampled in one step.
    logits = 2 * min(settings.max_num_seqs, settings.max_num_batched_tokens) * config.vocab_size
    block = 1
    for length in kv_block_shape(config, settings):
        block *= length
    return MemoryNeed(
        weights_bytes=weights * weight_bytes,
        workspace_bytes=(rows + rotary) * row_bytes + logits * DTYPE_BYTES["float32"],
        kv_block_bytes=2 * config.num_hidden_layers * block * row_bytes,
    )


def kv_block_shape(config: GlmConfig, settings: RunnerSettings) -> tuple[int, int, int]:
    """[block_size, KV heads of a rank, head_dim], as ReshapeAndCache and PagedAttention want it."""
    sizes = partition(config, upstream_part(settings.tensor_parallel))
    return settings.block_size, sizes.num_key_value_heads_per_partition, config.head_dim
