"""Self-attention: the projections around the core attention operator."""

from dataclasses import dataclass

from mindformers.parallel_core.utils.spec_utils import ModuleSpec, build_module
from mindspore import Tensor, nn

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.runner_settings import RunnerSettings


@dataclass(frozen=True)
class SelfAttentionSubmodules:
    """The operators of one self-attention; `linear_qkv` includes the layer's input norm."""

    linear_qkv: ModuleSpec
    core_attention: ModuleSpec
    linear_proj: ModuleSpec


class SelfAttention(nn.Cell):
    """GQA self-attention with partial, interleaved RoPE and a paged KV cache.

    hidden_states, output: float32 [max_rows, hidden_size], all sequences packed on axis 0. The
    input is the residual stream before its norm, the output has not been added to it.
    Source: transformers 4.51.3 `Glm4Attention`; GQA: Ainslie et al. 2023, arXiv:2305.13245.
    """

    def __init__(
        self,
        config: GlmConfig,
        settings: RunnerSettings,
        submodules: SelfAttentionSubmodules,
        name: str,
    ) -> None:
        super().__init__()
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.linear_qkv = build_module(
            submodules.linear_qkv,
            config.hidden_size,
            query_size + 2 * kv_size,
            has_bias=config.attention_bias,
            eps=config.rms_norm_eps,
            settings=settings,
            name=f"{name}.linear_qkv",
        )
        self.core_attention = build_module(
            submodules.core_attention,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            settings=settings,
        )
        self.linear_proj = build_module(
            submodules.linear_proj,
            query_size,
            config.hidden_size,
            settings=settings,
            name=f"{name}.linear_proj",
        )

    def construct(
        self, hidden_states: Tensor, cos_sin: Tensor, num_rows: Tensor, attn_metadata: Tensor
    ) -> Tensor:
        """Project, attend over the cache (which is written first) and project back."""
        qkv = self.linear_qkv(hidden_states, num_rows)
        attended = self.core_attention(qkv, cos_sin, attn_metadata)
        return self.linear_proj(attended, num_rows)
