"""How much memory a network needs, from its config alone, so that it is known before loading."""

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.runner_settings import RunnerSettings

# Activations of one layer that are alive at once besides qkv and the MLP's inner one: the residual
# before and after a branch, and the branch's output.
_LIVE_HIDDEN_STATES = 4
# Logits of the head's largest bucket, and the copy that NumPy samples from.
_LIVE_LOGITS = 2
_MAX_SAMPLED_ROWS = 32


def count_weight_bytes(config: GlmConfig, params_dtype: str) -> int:
    """Bytes of all weights in memory, up to the padding of packed matrices to full tiles.

    Norm weights and biases are float32 whatever the type.
    """
    query_size = config.num_attention_heads * config.head_dim
    qkv_size = query_size + 2 * config.num_key_value_heads * config.head_dim
    hidden, ffn = config.hidden_size, config.intermediate_size
    per_layer = hidden * qkv_size + query_size * hidden + 3 * hidden * ffn
    matrices = config.num_hidden_layers * per_layer + 2 * config.vocab_size * hidden
    vectors = config.num_hidden_layers * (4 * hidden + config.attention_bias * qkv_size) + hidden
    return matrices * DTYPE_BYTES[params_dtype] + vectors * DTYPE_BYTES["float32"]


def count_kv_block_bytes(config: GlmConfig, settings: RunnerSettings) -> int:
    """Bytes of one KV-cache block in all layers."""
    return settings.block_size * config.kv_bytes_per_token(settings.kv_cache_dtype)


def count_workspace_bytes(config: GlmConfig, settings: RunnerSettings) -> int:
    """Bytes of activations and logits of the largest step; an upper estimate."""
    qkv_size = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    row = _LIVE_HIDDEN_STATES * config.hidden_size + qkv_size + 2 * config.intermediate_size
    sampled_rows = min(_MAX_SAMPLED_ROWS, settings.max_num_batched_tokens)
    logits = _LIVE_LOGITS * sampled_rows * config.vocab_size
    rotary_table = settings.max_model_len * config.rotary_dim
    floats = settings.max_num_batched_tokens * row + logits + rotary_table
    return floats * DTYPE_BYTES["float32"]
