"""The same weights in ChatGLM's layout and in Hugging Face's: names, fused matrices, keys."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.model import hf_oracle

_TOP = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_IN_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
# Both keys of one number.
_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "multi_query_group_num": "num_key_value_heads",
    "kv_channels": "head_dim",
    "ffn_hidden_size": "intermediate_size",
    "padded_vocab_size": "vocab_size",
    "seq_length": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
    "add_qkv_bias": "attention_bias",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}


def to_chatglm(source: Path, folder: Path) -> Path:
    """Write a `glm` checkpoint in ChatGLM's layout, as its repositories have it."""
    glm = json.loads((source / "config.json").read_text())
    keys = {key: glm[other] for key, other in _KEYS.items()} | {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "multi_query_attention": True,
        # transformers 4.57 writes the second.
        "torch_dtype": glm["torch_dtype"] if "torch_dtype" in glm else glm["dtype"],
        "rope_ratio": glm["rope_theta"] / 10000,
    }
    theirs = load_file(source / "model.safetensors")
    ours = {name: theirs[other] for name, other in _TOP.items()}
    for layer in range(glm["num_hidden_layers"]):
        here, there = f"transformer.encoder.layers.{layer}.", f"model.layers.{layer}."
        ours |= {here + name: theirs[there + other] for name, other in _IN_LAYER.items()}
        for kind in ("weight", "bias") if glm["attention_bias"] else ("weight",):
            parts = [theirs[f"{there}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"{here}self_attention.query_key_value.{kind}"] = torch.cat(parts)
    ours["transformer.rotary_pos_emb.inv_freq"] = torch.ones(glm["head_dim"] // 4)
    return _write(folder, keys, ours)


def to_glm(source: Path, folder: Path) -> Path:
    """Write a ChatGLM checkpoint as a `glm` one, which Hugging Face runs."""
    chatglm = json.loads((source / "config.json").read_text())
    keys = {other: chatglm[key] for key, other in _KEYS.items()} | {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0 * chatglm["rope_ratio"],
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    theirs = load_file(source / "model.safetensors")
    ours = {other: theirs[name] for name, other in _TOP.items()}
    head, groups = chatglm["kv_channels"], chatglm["multi_query_group_num"]
    sizes = [chatglm["num_attention_heads"] * head, groups * head, groups * head]
    for layer in range(chatglm["num_layers"]):
        here, there = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        ours |= {here + other: theirs[there + name] for name, other in _IN_LAYER.items()}
        for kind in ("weight", "bias") if chatglm["add_qkv_bias"] else ("weight",):
            parts = theirs[f"{there}self_attention.query_key_value.{kind}"].split(sizes)
            for part, tensor in zip("qkv", parts, strict=True):
                ours[f"{here}self_attn.{part}_proj.{kind}"] = tensor.clone()
    return _write(folder, keys, ours)


def _write(folder: Path, keys: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(keys))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    hf_oracle.save_byte_tokenizer(folder)
    return folder
