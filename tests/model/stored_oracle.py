"""Hugging Face with the linear layers of a quantized checkpoint, as facts of the formats say.

Static: (x_int W_int^T + quant_bias) * deq_scale with one scale and offset; dynamic: activations
rounded token by token, with offsets where the tool's own simulation has them; weight-only: the
dequantized weight. Everything between is transformers in float32.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, MIXED, StaticActivation
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.quantized_view import QuantizedView
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import WeightRule, build_rules

# By the ends of our names: Hugging Face's modules, each a matrix or an equal share of its rows.
_MODULES = {
    "self_attention.linear_qkv.weight": (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    ),
    "self_attention.linear_proj.weight": ("self_attn.o_proj",),
    "mlp.linear_fc1.weight": ("mlp.gate_up_proj",),
    "mlp.linear_fc2.weight": ("mlp.down_proj",),
}


def put_into(
    model: PreTrainedModel,
    folder: Path,
    tokens: str = "card",
    is_simulated: bool = False,
    num_prompt: int | None = None,
    num_cards: int = 1,
) -> None:
    """Replace a float model's linear layers by those of a quantized folder.

    Args:
        tokens: how dynamic activations are rounded, token by token: "card", by absmax / 127;
            "msmodelslim", by minimum and maximum; "llm-compressor", whose simulation 0.5.1 gives
            each element a scale of its own, its magnitude / 127.5, whatever the strategy says.
        is_simulated: static activations as msModelSlim simulates them: in float, with the float
            bias in place of quant_bias, whose integers round it.
        num_cards: each has its part of the columns of o_proj and down_proj, and rounds tokens by
            the largest element of that part.
        num_prompt: W8A8_MIX: tokens before are rounded one by one, others statically; None: all
            are a prompt's.
    """
    config = GlmConfig.from_hf(folder)
    with Checkpoint.open(folder, find_format=find_format) as checkpoint:
        rules = build_rules(config, None, checkpoint.quantized)
        check_rules(rules, checkpoint)
        for rule in rules:
            for name, tensor in _float_parts(rule, checkpoint):
                model.get_parameter(name).data = torch.from_numpy(tensor)
        for rule in rules:
            for name, views in _quantized_parts(rule, checkpoint):
                module = model.get_submodule(name)
                assert isinstance(module, nn.Linear)
                parts = num_cards if name.endswith(("o_proj", "down_proj")) else 1
                module.forward = _forward_of(  # type: ignore[method-assign]
                    views, module.bias, tokens, is_simulated, num_prompt, parts
                )


def _float_parts(rule: WeightRule, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """Norms, biases and float layers, which anti-outlier may have changed."""
    names = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    }
    if len(rule.sources) == 1 and rule.sources[0].linear is None:
        names |= {end: f"{found[0]}.weight" for end, found in _MODULES.items() if len(found) == 1}
    if rule.parameter.endswith("linear_qkv.bias"):
        pieces = [
            checkpoint.view(source.name, piece).data.copy()
            for source in rule.sources
            for piece in source.pieces
        ]
        layer = rule.parameter.split(".")[2]
        for part, bias in zip("qkv", pieces, strict=True):
            yield f"model.layers.{layer}.self_attn.{part}_proj.bias", bias
    for end, name in names.items():
        if rule.parameter.endswith(end):
            layer = rule.parameter.split(".")[2]
            yield f"model.layers.{layer}.{name}", checkpoint.array(rule.sources[0].name).copy()


def _quantized_parts(
    rule: WeightRule, checkpoint: Checkpoint
) -> Iterator[tuple[str, list[QuantizedView]]]:
    names = next((names for end, names in _MODULES.items() if rule.parameter.endswith(end)), ())
    views = [
        checkpoint.quantized_view(source.name, source.linear, piece)
        for source in rule.sources
        if source.linear is not None
        for piece in source.pieces
    ]
    if not views:
        return
    layer = rule.parameter.split(".")[2]
    if len(names) == 1:
        yield f"model.layers.{layer}.{names[0]}", views
    else:
        for name, view in zip(names, views, strict=True):
            yield f"model.layers.{layer}.{name}", [view]


def _forward_of(
    views: list[QuantizedView],
    bias: nn.Parameter | None,
    tokens: str,
    is_simulated: bool,
    num_prompt: int | None,
    num_parts: int,
) -> Callable[[torch.Tensor], torch.Tensor]:
    rows = [rows for view in views for _, rows in view.quantized_chunks()]
    weight = np.concatenate([part.dequantized() for part in rows])
    codes = np.concatenate([part.codes for part in rows]).astype(np.float64)
    # Stacked views have the same segments of columns; of most layers there is one.
    static = list(zip(*(view.read_activations() for view in views), strict=True))
    scheme = views[0].linear.scheme
    activation = FLOAT if scheme is None else scheme.activation
    added = 0.0 if bias is None else bias.detach().numpy()

    def forward(x: torch.Tensor) -> torch.Tensor:
        values = x.detach().numpy()
        if activation == MIXED:
            by_token = _round_tokens(values, tokens) @ weight.T + added
            given = _static(values, codes, static, added)
            is_prompt = np.arange(values.shape[-2]) < (num_prompt or values.shape[-2])
            joined = np.where(is_prompt[:, None], by_token, given)
            return torch.from_numpy(joined.astype(np.float32))
        if static[0][0][1] is not None and is_simulated:
            values = np.concatenate(
                [
                    _round_static(values[..., taken.start : taken.stop], given)
                    * np.float32(given.input_scale)
                    for (taken, given), *_ in static
                    if given is not None
                ],
                axis=-1,
            )
        elif static[0][0][1] is not None:
            return torch.from_numpy(_static(values, codes, static, added))
        elif activation == DYNAMIC:
            parts = np.split(values, num_parts, axis=-1)
            values = np.concatenate([_round_tokens(part, tokens) for part in parts], axis=-1)
        return torch.from_numpy((values @ weight.T + added).astype(np.float32))

    return forward


def _static(
    x: np.ndarray,
    codes: np.ndarray,
    segments: Sequence[Sequence[tuple[range, StaticActivation | None]]],
    bias: np.ndarray | float,
) -> np.ndarray:
    """The sum over segments of columns.

    Args:
        segments: of each, for the views that are stacked: its columns, and how they enter.
    """
    y, contains_bias = 0.0, False
    for segment in segments:
        taken = slice(segment[0][0].start, segment[0][0].stop)
        parts = [part for _, part in segment if part is not None]
        contains_bias = parts[0].contains_bias
        x_int = _round_static(x[..., taken], parts[0]) + parts[0].input_offset
        quant_bias = np.concatenate([part.quant_bias for part in parts])
        deq_scale = np.concatenate([part.deq_scale for part in parts])
        y = y + (x_int.astype(np.float64) @ codes[:, taken].T + quant_bias) * deq_scale
    return np.asarray(y if contains_bias else y + bias, np.float32)


def _round_static(x: np.ndarray, activation: StaticActivation) -> np.ndarray:
    """Whole numbers of steps from zero."""
    offset = activation.input_offset
    steps = np.rint(x / np.float32(activation.input_scale) + offset)
    return (np.clip(steps, -128, 127) - offset).astype(np.float32)


def _round_tokens(x: np.ndarray, tokens: str) -> np.ndarray:
    if tokens == "card":
        scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True) / 127, 1e-12)
        return np.clip(np.rint(x / scale), -127, 127) * scale
    if tokens == "llm-compressor":
        scale = np.maximum(np.abs(x) / np.float32(127.5), np.float32(1e-12))
        return np.clip(np.rint(x / scale), -128, 127) * scale
    low = np.minimum(x.min(axis=-1, keepdims=True), 0)
    high = np.maximum(x.max(axis=-1, keepdims=True), 0)
    scale = np.maximum((high - low) / 255, 2.0**-23)
    zero = np.rint(-low / scale) - 128
    return (np.clip(np.rint(x / scale + zero), -128, 127) - zero) * scale


def largest_difference_of_products(folder: Path) -> float:
    """Between integer products and the tool's float simulation, in steps of `deq_scale`.

    Of every statically quantized layer of a folder, on random activations.
    """
    config = GlmConfig.from_hf(folder)
    rng, largest = np.random.default_rng(0), 0.0
    with Checkpoint.open(folder, find_format=find_format) as checkpoint:
        for rule in build_rules(config, None, checkpoint.quantized):
            for source in rule.sources:
                if source.linear is None:
                    continue
                name = source.name.removesuffix("weight") + "bias"
                has_bias = name in checkpoint.entries
                whole = checkpoint.array(name) if has_bias else np.zeros(source.shape[0])
                for piece in source.pieces:
                    view = checkpoint.quantized_view(source.name, source.linear, piece)
                    static = view.read_activation()
                    assert static is not None
                    ((_, rows),) = view.quantized_chunks()
                    x = rng.normal(size=(7, source.shape[1])) * 40 * static.input_scale
                    bias = whole[piece.rows.start : piece.rows.stop]
                    segment = [(range(x.shape[1]), static)]
                    products = _static(x, rows.codes.astype(np.float64), [segment], bias)
                    steps = _round_static(x, static).astype(np.float64) * static.input_scale
                    simulated = steps @ rows.dequantized().T.astype(np.float64) + bias
                    difference = np.abs(products - simulated) / static.deq_scale
                    largest = max(largest, float(difference.max()))
    return largest
