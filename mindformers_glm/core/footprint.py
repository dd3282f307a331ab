"""How much memory a network needs, from its config alone, so that it is known before loading."""

from collections.abc import Iterator
from dataclasses import replace

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.quantization_scheme import SCHEMES
from mindformers_glm.core.runner_settings import RunnerSettings

# Activations of one layer that are alive at once besides qkv and the MLP's inner one: the residual
# before and after a branch, and the branch's output.
_LIVE_HIDDEN_STATES = 4
# Logits of the head's largest bucket, and the copy that NumPy samples from.
_LIVE_LOGITS = 2
_MAX_SAMPLED_ROWS = 32


def count_weight_bytes(config: GlmConfig, settings: RunnerSettings) -> int:
    """Bytes of all weights in memory, up to the padding of packed matrices to full tiles.

    Norm weights and biases are float32 whatever the type.
    """
    embedding = config.vocab_size * config.hidden_size * DTYPE_BYTES[settings.params_dtype]
    linears = sum(
        _count_linear_bytes(settings, name, num_rows, num_columns)
        for name, num_rows, num_columns in _list_linears(config)
    )
    qkv_size = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    num_norms = 4 if config.has_sandwich_norms else 2
    per_layer = num_norms * config.hidden_size + config.attention_bias * qkv_size
    vectors = config.num_hidden_layers * per_layer + config.hidden_size
    return embedding + linears + vectors * DTYPE_BYTES["float32"]


def count_quantized_weight_bytes(config: GlmConfig, settings: RunnerSettings) -> dict[str, int]:
    """What `count_weight_bytes` would be with each quantization scheme, by its name."""
    return {
        name: count_weight_bytes(
            config, replace(settings, quantization=name, quantization_group_size=None)
        )
        for name in SCHEMES
    }


def _list_linears(config: GlmConfig) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every linear layer's weight."""
    query_size = config.num_attention_heads * config.head_dim
    qkv_size = query_size + 2 * config.num_key_value_heads * config.head_dim
    hidden, ffn = config.hidden_size, config.intermediate_size
    for layer in range(config.num_hidden_layers):
        prefix = f"decoder.layers.{layer}"
        yield f"{prefix}.self_attention.linear_qkv", qkv_size, hidden
        yield f"{prefix}.self_attention.linear_proj", hidden, query_size
        yield f"{prefix}.mlp.linear_fc1", 2 * ffn, hidden
        yield f"{prefix}.mlp.linear_fc2", hidden, ffn
    yield "output_layer", config.vocab_size, hidden


def _count_linear_bytes(
    settings: RunnerSettings, name: str, num_rows: int, num_columns: int
) -> int:
    scheme = settings.scheme_of(name)
    if scheme is None:
        return num_rows * num_columns * DTYPE_BYTES[settings.params_dtype]
    return scheme.count_bytes(num_rows, num_columns)


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
