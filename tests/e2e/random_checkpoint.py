"""A whole Hugging Face folder with random weights and a tokenizer of bytes."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONTEXT = 64
_HIDDEN, _FFN, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM = 32, 48, 2, 4, 2, 16
_END = "<|endoftext|>"


def write_checkpoint(folder: Path) -> Path:
    """Write a two-layer Glm4ForCausalLM in float32 as two shards with an index."""
    tokenizer = _byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size()
    config = {
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "attention_bias": True,
        "eos_token_id": [vocab_size - 1],
        "pad_token_id": vocab_size - 1,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "intermediate_size": _FFN,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": _LAYERS,
        "num_key_value_heads": _KV_HEADS,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": vocab_size,
    }
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END}
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    tensors = _random_tensors(vocab_size)
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    return folder


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _byte_tokenizer() -> Tokenizer:
    """One token a byte, and one that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    return tokenizer


def _random_tensors(vocab_size: int) -> dict[str, np.ndarray]:
    queries, keys = _HEADS * _HEAD_DIM, _KV_HEADS * _HEAD_DIM
    layer = {
        "input_layernorm.weight": (_HIDDEN,),
        "post_attention_layernorm.weight": (_HIDDEN,),
        "post_self_attn_layernorm.weight": (_HIDDEN,),
        "post_mlp_layernorm.weight": (_HIDDEN,),
        "self_attn.q_proj.weight": (queries, _HIDDEN),
        "self_attn.k_proj.weight": (keys, _HIDDEN),
        "self_attn.v_proj.weight": (keys, _HIDDEN),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (_HIDDEN, queries),
        "mlp.gate_up_proj.weight": (2 * _FFN, _HIDDEN),
        "mlp.down_proj.weight": (_HIDDEN, _FFN),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
        "lm_head.weight": (vocab_size, _HIDDEN),
    }
    for number in range(_LAYERS):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) * 0.3 for name, shape in shapes.items()}
