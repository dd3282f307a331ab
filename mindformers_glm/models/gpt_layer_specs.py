"""Which Cell stands in which place of a decoder layer."""

from mindformers.parallel_core.utils.spec_utils import ModuleSpec

from mindformers_glm.core.operators import Operators
from mindformers_glm.layers.attention import SelfAttention, SelfAttentionSubmodules
from mindformers_glm.layers.mlp import MLP, MLPSubmodules
from mindformers_glm.layers.transformer_layer import TransformerLayer, TransformerLayerSubmodules


def get_sandwich_layer_spec(operators: Operators) -> ModuleSpec:
    """Layer of GLM-4-0414: norms before and after attention and MLP."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(
                module=SelfAttention,
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ModuleSpec(module=operators.norm_linear),
                    core_attention=ModuleSpec(module=operators.paged_attention),
                    linear_proj=ModuleSpec(module=operators.linear),
                ),
            ),
            post_self_attn_layernorm=ModuleSpec(module=operators.rms_norm_add),
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=ModuleSpec(module=operators.norm_gated_linear),
                    linear_fc2=ModuleSpec(module=operators.linear),
                ),
            ),
            post_mlp_layernorm=ModuleSpec(module=operators.rms_norm_add),
        ),
    )
