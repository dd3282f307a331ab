"""The config.json keys of released models, as far as the network depends on them.

From their config.json files, for the 0414 series from conversion logs of others. The number of
layers is the real one; make_slice.py lowers it.
"""

from typing import Any

_GLM = {
    "head_dim": 128,
    "hidden_act": "silu",
    "vocab_size": 151552,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}
_GLM4 = _GLM | {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
_32B = _GLM4 | {
    "hidden_size": 6144,
    "intermediate_size": 23040,
    "num_hidden_layers": 61,
    "num_attention_heads": 48,
    "attention_bias": False,
}
_CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 32768,
    "torch_dtype": "float16",
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_CHATGLM_9B = _CHATGLM | {
    "layernorm_epsilon": 1.5625e-07,
    "num_layers": 40,
    "num_hidden_layers": 40,
    "padded_vocab_size": 151552,
    "rope_ratio": 500,
    "seq_length": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}

MODELS: dict[str, dict[str, Any]] = {
    "9b": _GLM4
    | {
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "attention_bias": True,
    },
    "32b": _32B,
    "rumination-32b": _32B | {"num_key_value_heads": 8, "max_position_embeddings": 131072},
    "glm-4-9b-chat-hf": _GLM
    | {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "attention_bias": True,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 5000000.0,
    },
    "chatglm2-6b": _CHATGLM,
    "chatglm3-6b": _CHATGLM | {"seq_length": 8192},
    "chatglm3-6b-32k": _CHATGLM | {"rope_ratio": 50},
    "glm-4-9b-chat": _CHATGLM_9B,
    "glm-4-9b-chat-1m": _CHATGLM_9B
    | {"multi_query_group_num": 4, "rope_ratio": 10000, "seq_length": 1048576},
}
