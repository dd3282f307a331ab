"""The config.json of a checkpoint small enough to be written tensor by tensor."""

from typing import Any

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["Glm4ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": [3, 4],
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "model_type": "glm4",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "vocab_size": 33,
}
