"""The architecture of GLM-4-9B-0414, for tests that count bytes."""

from mindformers_glm.config.glm_config import GlmConfig

# GLM-4-9B-0414's config.json.
GLM_9B = GlmConfig(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    hidden_size=4096,
    intermediate_size=13696,
    num_hidden_layers=40,
    num_attention_heads=32,
    num_key_value_heads=2,
    head_dim=128,
    vocab_size=151552,
    max_position_embeddings=32768,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    partial_rotary_factor=0.5,
    attention_bias=True,
    tie_word_embeddings=False,
    hidden_act="silu",
    torch_dtype="bfloat16",
    eos_token_ids=(151329,),
    bos_token_id=None,
    pad_token_id=None,
)
