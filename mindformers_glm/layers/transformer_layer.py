"""One decoder layer, and the stack of them."""

from dataclasses import dataclass

from mindformers.parallel_core.utils.spec_utils import ModuleSpec, build_module
from mindspore import nn

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings


@dataclass(frozen=True)
class TransformerLayerSubmodules:
    """The parts of a layer.

    The norms before attention and MLP are inside `linear_qkv` and `linear_fc1`. The ones here are
    the second slices of GLM-4-0414's sandwich: they norm a branch's output and add it to the
    residual. In layers without them it is added as it is.
    """

    self_attention: ModuleSpec
    post_self_attn_layernorm: ModuleSpec
    mlp: ModuleSpec
    post_mlp_layernorm: ModuleSpec


class TransformerLayer(nn.Cell):
    """x += post_self_attn_norm(attn(input_norm x)); x += post_mlp_norm(mlp(pre_mlp_norm x)).

    x is the residual stream, float32 [max_rows, hidden_size]. Every part knows its Megatron-Core
    name, by which the settings choose how a linear layer keeps its weight.
    Source: transformers 4.51.3 `Glm4DecoderLayer`; without norms behind the branches
    `GlmDecoderLayer`, which is ChatGLM's `GLMBlock` too.
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
        self.post_self_attn_layernorm = build_module(
            submodules.post_self_attn_layernorm, config.hidden_size
        )
        self.mlp = build_module(submodules.mlp, config, settings, name=f"{name}.mlp")
        self.post_mlp_layernorm = build_module(submodules.post_mlp_layernorm, config.hidden_size)

    def operators(self) -> list[nn.Cell]:
        """In the order in which each takes the one before's result."""
        return [
            *self.self_attention.operators(),
            self.post_self_attn_layernorm,
            *self.mlp.operators(),
            self.post_mlp_layernorm,
        ]


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
