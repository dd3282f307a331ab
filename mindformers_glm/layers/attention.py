"""Self-attention: the core attention operator and the projections around it."""

from dataclasses import dataclass

from mindformers.parallel_core.utils.spec_utils import ModuleSpec, build_module
from mindspore import nn

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import partition
from mindformers_glm.config.runner_settings import RunnerSettings


@dataclass(frozen=True)
class SelfAttentionSubmodules:
    """The operators of one self-attention; `linear_qkv` includes the layer's input norm."""

    linear_qkv: ModuleSpec
    core_attention: ModuleSpec
    linear_proj: ModuleSpec
    all_reduce: ModuleSpec


class SelfAttention(nn.Cell):
    """GQA self-attention with partial, interleaved RoPE and a paged KV cache.

    Its operators make float32 [max_rows, hidden_size] of the residual stream before its norm, with
    all sequences packed on axis 0; the layer adds it to the stream. A rank attends with its own
    heads; its part is summed with the other ranks'.
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

    def operators(self) -> list[nn.Cell]:
        """In the order in which each takes the one before's result."""
        return [self.linear_qkv, self.core_attention, self.linear_proj, self.all_reduce]
