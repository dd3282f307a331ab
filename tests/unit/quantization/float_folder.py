"""Float folders whose sizes quantizing tools can pack: multiples of groups, words and pairs."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.weights.rules import build_rules

_GLM4 = {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "vocab_size": 65,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": [1],
    "torch_dtype": "float32",
}


def write_float_folder(folder: Path, model_type: str, **changes: int) -> Path:
    """A random checkpoint of a dialect; `changes` are GLM-4's keys."""
    raw = _GLM4 | changes
    if model_type == "glm":
        raw |= {"architectures": ["GlmForCausalLM"], "model_type": "glm"}
    elif model_type == "chatglm":
        config = GlmConfig.from_dict(raw, "config.json")
        raw = {
            "architectures": ["ChatGLMModel"],
            "model_type": "chatglm",
            "multi_query_attention": True,
            "add_qkv_bias": True,
            "hidden_size": config.hidden_size,
            "ffn_hidden_size": config.intermediate_size,
            "num_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "multi_query_group_num": config.num_key_value_heads,
            "kv_channels": config.head_dim,
            "padded_vocab_size": config.vocab_size,
            "seq_length": config.max_position_embeddings,
            "layernorm_epsilon": config.rms_norm_eps,
            "torch_dtype": "float32",
        }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    rules = build_rules(GlmConfig.from_hf(folder))
    rng = np.random.default_rng(0)
    tensors = {
        source.name: rng.normal(size=source.shape).astype(np.float32)
        for rule in rules
        for source in rule.sources
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
