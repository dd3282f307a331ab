"""Random small models of every dialect, of awkward sizes, that Hugging Face can run too.

A folder has config.json, weights, and a tokenizer with one character for each token of the
vocabulary, so that text says which tokens were chosen.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from make_slice import write_random_checkpoint
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

_FIRST_CHARACTER = 0x4E00  # 20,000 letters from here on
_CONTEXT = 512
_MOST_DEVIATION = 0.3
_END = 1  # no prompt has it
_HEADS = ((4, 1), (4, 2), (8, 4), (8, 8), (6, 2), (16, 2))


def write_random_model(folder: Path, dialect: str, dtype: str, seed: int) -> float:
    """Write a model of `dialect` ("glm4", "glm", "chatglm"), all of it drawn from `seed`.

    Returns:
        The deviation of its weights, 0.02 to _MOST_DEVIATION.
    """
    rng = np.random.default_rng(seed)
    deviation = float(rng.uniform(0.02, _MOST_DEVIATION))
    glm = _draw_glm_keys(rng, dtype, is_chatglm=dialect == "chatglm")
    classes = {"glm4": "Glm4ForCausalLM", "glm": "GlmForCausalLM"}
    keys = (
        _to_chatglm_keys(glm)
        if dialect == "chatglm"
        else glm | {"model_type": dialect, "architectures": [classes[dialect]]}
    )
    write_random_checkpoint(folder, dialect, keys, deviation, seed)
    write_tokenizer(folder, glm["vocab_size"])
    return deviation


def read_vocab_size(folder: Path) -> int:
    """Tokens of a model that `write_random_model` has written."""
    keys = json.loads((folder / "config.json").read_text())
    return int(keys.get("vocab_size") or keys["padded_vocab_size"])


def draw_prompt(vocab_size: int, length: int, seed: int) -> list[int]:
    """Random tokens, of which none ends a text."""
    return np.random.default_rng(seed).integers(_END + 1, vocab_size, length).tolist()


def to_text(token_ids: list[int]) -> str:
    """The text that the tokenizer makes these tokens of."""
    return "".join(chr(_FIRST_CHARACTER + token) for token in token_ids)


def to_tokens(text: str) -> list[int]:
    """The reverse of `to_text`."""
    return [ord(character) - _FIRST_CHARACTER for character in text]


def _draw_glm_keys(rng: np.random.Generator, dtype: str, is_chatglm: bool) -> dict[str, Any]:
    heads, kv_heads = _HEADS[rng.integers(len(_HEADS))]
    return {
        "vocab_size": int(rng.integers(130, 700)) * 2,  # two ranks have half of it each
        "hidden_size": int(rng.choice([48, 64, 72, 96, 136, 160, 256])),
        "intermediate_size": int(rng.choice([50, 64, 96, 136, 250, 384])),
        "num_hidden_layers": int(rng.integers(1, 7)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": int(rng.choice([16, 32, 64, 128])),
        "partial_rotary_factor": 0.5 if is_chatglm else float(rng.choice([0.5, 1.0])),
        "attention_bias": bool(rng.integers(2)),
        "tie_word_embeddings": bool(rng.integers(4) == 0) and not is_chatglm,
        "rope_theta": float(rng.choice([1e4, 5e5, 5e6])),
        "rms_norm_eps": float(rng.choice([1e-5, 1.5625e-7])),
        "max_position_embeddings": _CONTEXT,
        "hidden_act": "silu",
        "torch_dtype": dtype,
        "eos_token_id": [_END],
        "pad_token_id": 0,
    }


def _to_chatglm_keys(glm: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "multi_query_attention": True,
        "hidden_size": glm["hidden_size"],
        "num_layers": glm["num_hidden_layers"],
        "num_attention_heads": glm["num_attention_heads"],
        "multi_query_group_num": glm["num_key_value_heads"],
        "kv_channels": glm["head_dim"],
        "ffn_hidden_size": glm["intermediate_size"],
        "padded_vocab_size": glm["vocab_size"],
        "seq_length": _CONTEXT,
        "layernorm_epsilon": glm["rms_norm_eps"],
        "add_qkv_bias": glm["attention_bias"],
        "rope_ratio": glm["rope_theta"] / 1e4,
        "torch_dtype": glm["torch_dtype"],
        "eos_token_id": _END,
        "pad_token_id": 0,
    }


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """One letter for each token of the vocabulary."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [letters.pre_tokenize_str(chr(_FIRST_CHARACTER + n))[0][0] for n in range(vocab_size)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], ignore_merges=True))
    each = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([each, letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
