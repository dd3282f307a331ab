"""Which Cell stands in which place of a decoder layer."""

from mindformers.parallel_core.utils.spec_utils import ModuleSpec

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.operators import Operators
from mindformers_glm.layers.attention import SelfAttention, SelfAttentionSubmodules
from mindformers_glm.layers.mlp import MLP, MLPSubmodules
from mindformers_glm.layers.transformer_layer import (
    SandwichLayer,
    SandwichLayerSubmodules,
    TransformerLayer,
    TransformerLayerSubmodules,
)


def get_layer_spec(config: GlmConfig, operators: Operators) -> ModuleSpec:
    """The layer of the config's dialect."""
    get_spec = get_sandwich_layer_spec if config.has_sandwich_norms else get_pre_norm_layer_spec
    return get_spec(operators)


def get_sandwich_layer_spec(operators: Operators) -> ModuleSpec:
    """Layer of GLM-4-0414: norms before and after attention and MLP."""
    return ModuleSpec(
        module=SandwichLayer,
        submodules=SandwichLayerSubmodules(
            self_attention=_get_self_attention_spec(operators),
            post_self_attn_layernorm=ModuleSpec(module=operators.rms_norm_add),
            mlp=_get_mlp_spec(operators),
            post_mlp_layernorm=ModuleSpec(module=operators.rms_norm_add),
        ),
    )


def get_pre_norm_layer_spec(operators: Operators) -> ModuleSpec:
    """Layer of ChatGLM2, ChatGLM3 and GLM-4: norms before attention and MLP only."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=_get_self_attention_spec(operators),
            mlp=_get_mlp_spec(operators),
            residual_add=ModuleSpec(module=operators.residual_add),
        ),
    )


def _get_self_attention_spec(operators: Operators) -> ModuleSpec:
    return ModuleSpec(
        module=SelfAttention,
        submodules=SelfAttentionSubmodules(
            linear_qkv=ModuleSpec(module=operators.norm_linear),
            core_attention=ModuleSpec(module=operators.paged_attention),
            linear_proj=ModuleSpec(module=operators.linear),
            all_reduce=ModuleSpec(module=operators.all_reduce),
        ),
    )


def _get_mlp_spec(operators: Operators) -> ModuleSpec:
    return ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(
            linear_fc1=ModuleSpec(module=operators.norm_gated_linear),
            linear_fc2=ModuleSpec(module=operators.linear),
            all_reduce=ModuleSpec(module=operators.all_reduce),
        ),
    )
