"""A tiny GLM-4-0414 checkpoint folder, written tensor by tensor under its Hugging Face names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.unit.tiny_config import TINY_CONFIG

RAW_CONFIG = TINY_CONFIG | {
    "attention_bias": True,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


@pytest.fixture
def raw_config() -> dict[str, Any]:
    return dict(RAW_CONFIG)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """All tensors of RAW_CONFIG in float32, random."""
    rng = np.random.default_rng(0)
    layer_shapes = {
        "input_layernorm.weight": (24,),
        "post_attention_layernorm.weight": (24,),
        "post_self_attn_layernorm.weight": (24,),
        "post_mlp_layernorm.weight": (24,),
        "self_attn.q_proj.weight": (64, 24),
        "self_attn.k_proj.weight": (32, 24),
        "self_attn.v_proj.weight": (32, 24),
        "self_attn.q_proj.bias": (64,),
        "self_attn.k_proj.bias": (32,),
        "self_attn.v_proj.bias": (32,),
        "self_attn.o_proj.weight": (24, 64),
        "mlp.gate_up_proj.weight": (80, 24),
        "mlp.down_proj.weight": (24, 40),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (33, 24),
        "model.norm.weight": (24,),
        "lm_head.weight": (33, 24),
    }
    for layer in range(3):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes.items()}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


CHATGLM_CONFIG = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "kv_channels": 16,
    "num_layers": 1,
    "ffn_hidden_size": 40,
    "padded_vocab_size": 33,
    "seq_length": 128,
    "layernorm_epsilon": 1e-5,
    "torch_dtype": "float32",
}


@pytest.fixture
def chatglm_tensors() -> dict[str, np.ndarray]:
    """All tensors of CHATGLM_CONFIG in float32, random."""
    rng = np.random.default_rng(1)
    layer = "transformer.encoder.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (33, 24),
        "transformer.rotary_pos_emb.inv_freq": (4,),
        f"{layer}input_layernorm.weight": (24,),
        f"{layer}post_attention_layernorm.weight": (24,),
        f"{layer}self_attention.query_key_value.weight": (128, 24),
        f"{layer}self_attention.query_key_value.bias": (128,),
        f"{layer}self_attention.dense.weight": (24, 64),
        f"{layer}mlp.dense_h_to_4h.weight": (80, 24),
        f"{layer}mlp.dense_4h_to_h.weight": (24, 40),
        "transformer.encoder.final_layernorm.weight": (24,),
        "transformer.output_layer.weight": (33, 24),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def chatglm_config() -> dict[str, Any]:
    return dict(CHATGLM_CONFIG)


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write config.json and `num_shards` shards with an index (one shard: model.safetensors)."""

    def write(
        tensors: dict[str, np.ndarray], raw: dict[str, Any] = RAW_CONFIG, num_shards: int = 1
    ) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(raw))
        if num_shards == 1:
            save_file(tensors, folder / "model.safetensors")
            return folder
        weight_map = {}
        for shard in range(num_shards):
            file_name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
            names = list(tensors)[shard::num_shards]
            save_file({name: tensors[name] for name in names}, folder / file_name)
            weight_map |= dict.fromkeys(names, file_name)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return write


@pytest.fixture
def folder(tensors: dict[str, np.ndarray], write_folder: Callable[..., Path]) -> Path:
    """A folder with `tensors` in one file."""
    return write_folder(tensors)
