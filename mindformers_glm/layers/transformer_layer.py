"""One decoder layer, with and without norms behind its branches, and the stack of them."""

from dataclasses import dataclass

from mindformers.parallel_core.utils.spec_utils import ModuleSpec, build_module
from mindspore import Tensor, nn

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.runner_settings import RunnerSettings


@dataclass(frozen=True)
class TransformerLayerSubmodules:
    """The parts of a pre-norm layer; its norms are inside `linear_qkv` and `linear_fc1`."""

    self_attention: ModuleSpec
    mlp: ModuleSpec
    residual_add: ModuleSpec


@dataclass(frozen=True)
class SandwichLayerSubmodules:
    """The parts of a sandwich layer.

    The norms before attention and MLP are inside `linear_qkv` and `linear_fc1`; the ones here are
    the second slices of the sandwich: they norm a branch's output and add it to the residual.
    """

    self_attention: ModuleSpec
    post_self_attn_layernorm: ModuleSpec
    mlp: ModuleSpec
    post_mlp_layernorm: ModuleSpec


class TransformerLayer(nn.Cell):
    """x += attn(input_norm x); x += mlp(pre_mlp_norm x).

    hidden_states, output: the residual stream, float32 [max_rows, hidden_size]. Every part knows
    its Megatron-Core name, by which the settings choose how a linear layer keeps its weight.
    Source: transformers 4.51.3 `GlmDecoderLayer`; ChatGLM's `GLMBlock` is the same.
    """

    def __init__(
        self,
        config: GlmConfig,
        settings: RunnerSettings,
        submodules: TransformerLayerSubmodules,
        name: str,
    ) -> None:
        super().__init__()
        self.self_attention = build_module(
            submodules.self_attention, config, settings, name=f"{name}.self_attention"
        )
        self.mlp = build_module(submodules.mlp, config, settings, name=f"{name}.mlp")
        self.add_attention = build_module(submodules.residual_add)
        self.add_mlp = build_module(submodules.residual_add)

    def construct(
        self, hidden_states: Tensor, cos_sin: Tensor, num_rows: Tensor, attn_metadata: Tensor
    ) -> Tensor:
        """Add both branches to the residual stream."""
        attended = self.self_attention(hidden_states, cos_sin, num_rows, attn_metadata)
        hidden_states = self.add_attention(attended, hidden_states, num_rows)
        expanded = self.mlp(hidden_states, num_rows)
        return self.add_mlp(expanded, hidden_states, num_rows)


class SandwichLayer(nn.Cell):
    """x += post_self_attn_norm(attn(input_norm x)); x += post_mlp_norm(mlp(pre_mlp_norm x)).

    Inputs and output are those of TransformerLayer. Source: transformers 4.51.3 `Glm4DecoderLayer`.
    """

    def __init__(
        self,
        config: GlmConfig,
        settings: RunnerSettings,
        submodules: SandwichLayerSubmodules,
        name: str,
    ) -> None:
        super().__init__()
        self.self_attention = build_module(
            submodules.self_attention, config, settings, name=f"{name}.self_attention"
        )
        self.post_self_attn_layernorm = build_module(
            submodules.post_self_attn_layernorm, config.hidden_size, eps=config.rms_norm_eps
        )
        self.mlp = build_module(submodules.mlp, config, settings, name=f"{name}.mlp")
        self.post_mlp_layernorm = build_module(
            submodules.post_mlp_layernorm, config.hidden_size, eps=config.rms_norm_eps
        )

    def construct(
        self, hidden_states: Tensor, cos_sin: Tensor, num_rows: Tensor, attn_metadata: Tensor
    ) -> Tensor:
        """Add both branches, normed, to the residual stream."""
        attended = self.self_attention(hidden_states, cos_sin, num_rows, attn_metadata)
        hidden_states = self.post_self_attn_layernorm(attended, hidden_states, num_rows)
        expanded = self.mlp(hidden_states, num_rows)
        return self.post_mlp_layernorm(expanded, hidden_states, num_rows)


class TransformerBlock(nn.Cell):
    """All layers in order; the final norm runs later, on the rows that are sampled."""

    def __init__(self, config: GlmConfig, settings: RunnerSettings, layer_spec: ModuleSpec) -> None:
        super().__init__()
        self.layers = nn.CellList(
            [
                build_module(layer_spec, config, settings, name=f"decoder.layers.{number}")
                for number in range(config.num_hidden_layers)
            ]
        )

    def construct(
        self, hidden_states: Tensor, cos_sin: Tensor, num_rows: Tensor, attn_metadata: Tensor
    ) -> Tensor:
        """Pass the residual stream through every layer."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, cos_sin, num_rows, attn_metadata)
        return hidden_states
