"""How much device memory upstream's network needs, from its config alone."""

from mindformers_glm.backends.ascend.split import upstream_part
from mindformers_glm.backends.ascend.support import runs_integers
from mindformers_glm.backends.backend import MemoryNeed
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import partition
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.quantization_scheme import STATIC

# Rows of one layer that are alive at once besides qkv and the MLP's inner ones: the residual
# stream, its norm, a branch's output, and what a sum of the ranks is received into.
_LIVE_HIDDEN_STATES = 4
# Rows whose logits are on the device at once: a step of guesses, or of `LLM.logits`, has more.
MAX_SAMPLES = 128
# Beside a row of int8: its scale in float32; where activations are static an int32 as well, and
# the scale is an int64 for products in float16. Where they are float, scale and offset are as they.
_TOKEN_ROW_BYTES, _STATIC_ROW_BYTES, _LONG_SCALE_BYTES = 4, 8, 4
_ROTARY_TABLES = 4  # cos and sin, and upstream makes a pair for prompts and one for answers


def count_memory(config: GlmConfig, settings: RunnerSettings) -> MemoryNeed:
    """What one rank's network takes in all."""
    sizes = partition(config, upstream_part(settings.tensor_parallel))
    weight_bytes = DTYPE_BYTES[settings.params_dtype]
    row_bytes = DTYPE_BYTES[settings.compute_dtype]
    hidden, ffn = config.hidden_size, sizes.intermediate_size_per_partition
    num_norms = 4 if config.has_sandwich_norms else 2
    vectors = num_norms * hidden + config.attention_bias * sizes.qkv_size_per_partition
    num_tables = 1 if config.tie_word_embeddings else 2
    others = (
        config.num_hidden_layers * vectors
        + num_tables * sizes.vocab_size_per_partition * hidden
        + hidden
    )
    linears = {
        "self_attention.linear_qkv": (sizes.qkv_size_per_partition, hidden),
        "self_attention.linear_proj": (hidden, sizes.query_size_per_partition),
        "mlp.linear_fc1": (2 * ffn, hidden),
        "mlp.linear_fc2": (hidden, ffn),
    }
    linear_bytes = sum(
        _count_linear_bytes(settings, f"decoder.layers.{layer}.{name}", *shape)
        for layer in range(config.num_hidden_layers)
        for name, shape in linears.items()
    )
    inner = sizes.qkv_size_per_partition + 3 * ffn
    rows = settings.max_num_batched_tokens * (_LIVE_HIDDEN_STATES * hidden + inner)
    rotary = _ROTARY_TABLES * settings.max_model_len * config.head_dim
    # A chunk's mask has a row for each new token and a column for each token there is.
    mask = settings.max_num_batched_tokens * settings.max_model_len
    # In the compute type, and in float32, as they are handed over.
    logits = 2 * min(MAX_SAMPLES, settings.max_num_batched_tokens) * config.vocab_size
    block = 1
    for length in kv_block_shape(config, settings):
        block *= length
    return MemoryNeed(
        weights_bytes=others * weight_bytes + linear_bytes,
        workspace_bytes=(rows + rotary + mask) * row_bytes + logits * DTYPE_BYTES["float32"],
        kv_block_bytes=2 * config.num_hidden_layers * block * row_bytes,
    )


def _count_linear_bytes(
    settings: RunnerSettings, name: str, num_rows: int, num_columns: int
) -> int:
    """Bytes of a layer's matrix on one rank, and of what lies beside its integers."""
    # Not settings.scheme_of: what else a run or a checkpoint may ask for is refused.
    scheme = dict(settings.stored_schemes or ()).get(name)
    if scheme is None or not runs_integers(scheme):
        return num_rows * num_columns * DTYPE_BYTES[settings.params_dtype]
    row_bytes = _TOKEN_ROW_BYTES
    if scheme.activation_bits == 16:
        row_bytes = (1 + scheme.has_zeros) * DTYPE_BYTES[settings.compute_dtype]
    elif scheme.activation_scale == STATIC:
        row_bytes = _STATIC_ROW_BYTES + _LONG_SCALE_BYTES * (settings.compute_dtype == "float16")
    return num_rows * (num_columns + row_bytes)


def kv_block_shape(config: GlmConfig, settings: RunnerSettings) -> tuple[int, int, int]:
    """[block_size, KV heads of a rank, head_dim], as ReshapeAndCache and PagedAttention want it."""
    sizes = partition(config, upstream_part(settings.tensor_parallel))
    return settings.block_size, sizes.num_key_value_heads_per_partition, config.head_dim
