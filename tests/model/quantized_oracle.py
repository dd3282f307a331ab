"""Hugging Face with quantized linear layers: the NumPy reference's weights in transformers' model.

Weights are replaced by what the reference's integers and scales stand for; activations of 8 bits
are rounded by the reference before each product, those of 16 bits are left as they are (their
rounding is 2**-16 of a group's largest value).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from mindformers_glm.core.quantization_scheme import QuantizationScheme, read_scheme
from tests.kernels import reference
from tests.model import hf_oracle


def load(
    folder: Path, name: str, group_size: int | None = None, float_layers: Sequence[int] = ()
) -> PreTrainedModel:
    """The checkpoint in float32 with quantized linear layers, the LM head among them.

    Args:
        float_layers: decoder layers that stay as they are.
    """
    scheme = read_scheme(name, group_size)
    assert scheme is not None
    model = hf_oracle.load(folder)
    float_prefixes = tuple(f"model.layers.{number}." for number in float_layers)
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not module_name.startswith(float_prefixes):
            # A new Parameter: a tied head is quantized, the embedding is not.
            module.weight = nn.Parameter(_round_weight(module.weight, scheme))
            if scheme.activation_bits == 8:
                group_size = scheme.group_size or reference.ACTIVATION_GROUP
                module.register_forward_pre_hook(_activation_rounding(group_size))
    return model


def _round_weight(weight: torch.Tensor, scheme: QuantizationScheme) -> torch.Tensor:
    integers, scales = reference.quantize_weight(
        weight.detach().numpy(), scheme.weight_bits, scheme.group_size or 0
    )
    num_columns = weight.shape[1]
    spread = np.repeat(scales, scheme.group_size or num_columns, axis=1)[:, :num_columns]
    return torch.from_numpy(integers.astype(np.float32) * spread)


def _activation_rounding(group_size: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], Any]:
    def round_activations(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
        (x,) = inputs
        rows = x.detach().numpy().reshape(-1, x.shape[-1])
        integers, scales = reference.quantize_activation(rows, 8, group_size)
        spread = np.repeat(scales, group_size, axis=1)[:, : rows.shape[1]]
        return (torch.from_numpy((integers * spread).astype(np.float32).reshape(x.shape)),)

    return round_activations
