"""Hugging Face with keys and values that are rounded to int8."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint

# Of a layer's keys or values: [..., kv_heads, tokens, head_dim] -> the same, rounded.
Rounding = Callable[[torch.Tensor], torch.Tensor]
_MODULES = {
    "chatglm": "transformer.encoder.layers.{}.self_attention.query_key_value.",
    "glm": "model.layers.{}.self_attn.",
    "glm4": "model.layers.{}.self_attn.",
}


def round_by_head(x: torch.Tensor) -> torch.Tensor:
    """With a scale for each head of each token."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=2.0**-100)
    return torch.round(x / scale) * scale


def read_channels(folder: Path) -> list[tuple[Rounding, Rounding]]:
    """The roundings of each layer's keys and values by a checkpoint's scales (C8)."""
    config = GlmConfig.from_hf(folder)
    with Checkpoint.open(folder, find_format=find_format) as checkpoint:

        def rounding(layer: int, name: str) -> Rounding:
            prefix = f"{_MODULES[config.model_type].format(layer)}{name}_proj.kv_cache_"
            scale, offset = (
                torch.from_numpy(checkpoint.array(prefix + what).astype(np.float32))
                .reshape(config.num_key_value_heads, 1, config.head_dim)
                .clone()
                for what in ("scale", "offset")
            )
            return lambda x: (
                (torch.clip(torch.round(x / scale + offset), -128, 127) - offset) * scale
            )

        return [
            (rounding(layer, "k"), rounding(layer, "v"))
            for layer in range(config.num_hidden_layers)
        ]


class RoundingCache(DynamicCache):
    """Rounds what is cached, keys behind their rotation."""

    def __init__(self, roundings: list[tuple[Rounding, Rounding]] | None) -> None:
        super().__init__()
        self._roundings = roundings

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See DynamicCache."""
        both = (round_by_head, round_by_head)
        of_key, of_value = both if self._roundings is None else self._roundings[layer_idx]
        return super().update(of_key(key_states), of_value(value_states), layer_idx, *args)


def logits_of(
    model: PreTrainedModel,
    token_ids: list[int],
    roundings: list[tuple[Rounding, Rounding]] | None = None,
) -> np.ndarray:
    """float32 [num_tokens, vocab_size]; without roundings, by heads."""
    with torch.no_grad():
        cache = RoundingCache(roundings)
        found = model(torch.tensor([token_ids]), past_key_values=cache, use_cache=True)
        return found.logits[0].float().numpy()
