"""Which Cell stands in which place of a decoder layer."""

from mindformers.parallel_core.utils.spec_utils import ModuleSpec

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.operators import Operators
from mindformers_glm.layers.attention import SelfAttention, SelfAttentionSubmodules
from mindformers_glm.layers.mlp import MLP, MLPSubmodules
from mindformers_glm.layers.transformer_layer import TransformerLayer, TransformerLayerSubmodules


def get_layer_spec(config: GlmConfig, operators: Operators) -> ModuleSpec:
    """The layer of the config's dialect.

    GLM-4-0414 has norms before and after attention and MLP; ChatGLM2, ChatGLM3 and GLM-4 have those
    before only, and add what a branch makes as it is.
    """
    join_residual = ModuleSpec(module=operators.residual_add)
    if config.has_sandwich_norms:
        join_residual = ModuleSpec(
            module=operators.rms_norm_add, params={"eps": config.rms_norm_eps}
        )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=_get_self_attention_spec(operators),
            post_self_attn_layernorm=join_residual,
            mlp=_get_mlp_spec(operators),
            post_mlp_layernorm=join_residual,
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
