"""Self-attention: the projections around the core attention operator."""

from dataclasses import dataclass

from mindformers.parallel_core.utils.spec_utils import ModuleSpec, build_module
from mindspore import Tensor, nn

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.runner_settings import RunnerSettings
from mindformers_glm.core.sharding import partition


@dataclass(frozen=True)
class SelfAttentionSubmodules:
    """The operators of one self-attention; `linear_qkv` includes the layer's input norm."""

    linear_qkv: ModuleSpec
    core_attention: ModuleSpec
    linear_proj: ModuleSpec
    all_reduce: ModuleSpec


class SelfAttention(nn.Cell):
    """GQA self-attention with partial, interleaved RoPE and a paged KV cache.

    hidden_states, output: float32 [max_rows, hidden_size], all sequences packed on axis 0. The
    input is the residual stream before its norm, the output has not been added to it. A rank
    attends with its own heads; its part of the output is summed with the other ranks'.
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
        sizes = partition(config, settings.tensor_parallel)
        self.linear_qkv = build_module(
            submodules.linear_qkv,
            config.hidden_size,
            sizes.qkv_size_per_partition,
            has_bias=config.attention_bias,
            # Errors of keys and values last, and attention amplifies those of keys; with two
            # heads of them the digits cost little. In queries they would cost a tenth of a prefill.
            num_precise=sizes.qkv_size_per_partition - sizes.query_size_per_partition,
            eps=config.rms_norm_eps,
            settings=settings,
            name=f"{name}.linear_qkv",
        )
        self.core_attention = build_module(
            submodules.core_attention,
            num_heads=sizes.num_attention_heads_per_partition,
            num_kv_heads=sizes.num_key_value_heads_per_partition,
            head_dim=config.head_dim,
            settings=settings,
        )
        self.linear_proj = build_module(
            submodules.linear_proj,
            sizes.query_size_per_partition,
            config.hidden_size,
            settings=settings,
            name=f"{name}.linear_proj",
        )
        self.all_reduce = build_module(submodules.all_reduce, settings.tensor_parallel)

    def construct(
        self, hidden_states: Tensor, cos_sin: Tensor, num_rows: Tensor, attn_metadata: Tensor
    ) -> Tensor:
        """Project, attend over the cache (which is written first) and project back."""
        qkv = self.linear_qkv(hidden_states, num_rows)
        attended = self.core_attention(qkv, cos_sin, attn_metadata)
        return self.all_reduce(self.linear_proj(attended, num_rows))
