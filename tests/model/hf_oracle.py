"""Hugging Face as the oracle: tiny random checkpoints and what transformers computes on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TINY = {
    "vocab_size": 515,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": [1],
    "pad_token_id": 0,
}
_CLASSES = {"glm4": (Glm4Config, Glm4ForCausalLM), "glm": (GlmConfig, GlmForCausalLM)}
# Attention scores then spread by about one: neither uniform nor a single peak.
_INITIALIZER_RANGE = 0.15


def save_random_checkpoint(
    folder: Path,
    dtype: str = "float32",
    seed: int = 0,
    model_type: str = "glm4",
    **changes: Any,
) -> Path:
    """Write a random network, its weights rounded to `dtype`, with a byte tokenizer."""
    torch.manual_seed(seed)
    config_class, model_class = _CLASSES[model_type]
    config = config_class(**(TINY | changes), initializer_range=_INITIALIZER_RANGE)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # transformers leaves norms at one and biases at zero, which would hide their misuse.
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            if name.endswith(".bias"):
                parameter.normal_(std=_INITIALIZER_RANGE)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


def save_byte_tokenizer(folder: Path) -> None:
    """A tokenizer with one token per byte, without special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def load(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    """The checkpoint in `dtype`; from a bfloat16 file to float32 keeps the rounded weights."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    _, model_class = _CLASSES[model_type]
    return model_class.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval()


def logits(folder: Path, token_ids: list[int], dtype: str = "float32") -> np.ndarray:
    """float32 [num_tokens, vocab_size]."""
    return logits_of(load(folder, dtype), token_ids)


def logits_of(model: PreTrainedModel, token_ids: list[int]) -> np.ndarray:
    """The same of a loaded model."""
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].float().numpy()


def greedy_tokens(folder: Path, token_ids: list[int], num_tokens: int) -> list[int]:
    """The next `num_tokens` most likely tokens in float32, end tokens included."""
    return greedy_tokens_of(load(folder), token_ids, num_tokens)


def greedy_tokens_of(model: PreTrainedModel, token_ids: list[int], num_tokens: int) -> list[int]:
    """The same of a loaded model."""
    with torch.no_grad():
        output = model.generate(
            torch.tensor([token_ids]),
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
        )
    return output[0, len(token_ids) :].tolist()


def assert_equal_or_close_call(
    model: PreTrainedModel,
    prompt: list[int],
    found: list[int],
    expected: list[int],
    tolerance: float,
) -> None:
    """Tokens may part where the reference's two best logits are closer than the tolerance."""
    if found == expected:
        return
    step = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if len(set(pair)) > 1)
    row = logits_of(model, prompt + expected[:step])[-1]
    gap = row[expected[step]] - row[found[step]]
    # The row's error is `tolerance` of its norm; two logits move against each other by that much.
    assert gap <= tolerance * np.linalg.norm(row) / np.sqrt(len(row)) * 4, (step, gap)
