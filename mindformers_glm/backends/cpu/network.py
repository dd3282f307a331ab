"""The network: token ids to hidden states, hidden states to logits.

Modules and Parameters have Megatron-Core's names, by which weights are loaded and the settings
choose how a linear layer keeps its weight. Called on the Values of a step the network writes down
what is to be done (trace.py); graphs.py has it compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mindspore import Parameter, Tensor, nn

from mindformers_glm.backends.cpu.collectives import AllReduce, GatherLogits
from mindformers_glm.backends.cpu.fused_layers import (
    Embedding,
    GatherRows,
    Linear,
    NormGatedLinear,
    NormLinear,
    ResidualAdd,
    RmsNorm,
    RmsNormAdd,
)
from mindformers_glm.backends.cpu.paged_attention import PagedAttention
from mindformers_glm.backends.cpu.rotary import build_cos_sin_table
from mindformers_glm.backends.cpu.row_parallel import RowParallelLinear
from mindformers_glm.backends.cpu.trace import Module, Value
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import partition
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.sharding import FFN, QUERY


@dataclass(frozen=True)
class Step:
    """What all layers need to know of a step.

    Attributes:
        cos_sin: float32 [max_model_len, rotary_dim], the rotary table.
        attn_metadata: int32, the vector of attn_metadata.py.
    """

    cos_sin: Parameter
    attn_metadata: Value


class GPTModel(Module):
    """A GLM of any dialect on one rank.

    Args:
        settings: says also which rank; a rank has its share of heads, inner columns and vocabulary.
    """

    def __init__(self, config: GlmConfig, settings: RunnerSettings) -> None:
        super().__init__()
        self.embedding = LanguageModelEmbedding(config, settings)
        self.decoder = TransformerBlock(config, settings)
        self.gather_rows = GatherRows(config.hidden_size)
        self.output_layer = Linear(
            config.hidden_size,
            partition(config, settings.tensor_parallel).vocab_size_per_partition,
            settings,
            name="output_layer",
        )
        self.gather_logits = GatherLogits(config.vocab_size, settings.tensor_parallel)
        cos_sin = build_cos_sin_table(
            settings.max_model_len,
            config.rotary_dim,
            config.rope_theta,
            config.rope_scaling,
            # Wide tables cost no more, and keep a result nearer to Hugging Face's float32.
            settings.rotary_dtype or "float32",
        )
        # A nameless temporary and nothing else: Parameter would copy the table otherwise, which
        # takes 256 MB for a million tokens.
        self.cos_sin = Parameter(Tensor.from_numpy(cos_sin))
        self.cos_sin.name = "rotary_cos_sin"
        self.cos_sin.requires_grad = False

    def construct(self, x: Value, step: Step, layers: Sequence["TransformerLayer"]) -> Value:
        """Run consecutive layers, behind the embedding where the first one is among them.

        Args:
            x: int32 [max_rows] token ids, or float32 [max_rows, hidden_size] hidden states.
        Returns:
            float32 [max_rows, hidden_size] before the final norm.
        """
        x = self._embed(x, layers)
        for layer in layers:
            x = layer(x, step)
        return x

    def compute_logits(
        self, x: Value, step: Step, layers: Sequence["TransformerLayer"], sample_rows: Value
    ) -> Value:
        """Run the last layers, if any are given, and the head.

        What follows the last layer's attention is computed for the sampled rows alone: nothing
        else reads it.

        Args:
            x: as in `construct`.
            sample_rows: int32 [max_samples].
        Returns:
            float32 [max_samples, vocab_size].
        """
        if layers:
            x = self(x, step, layers[:-1])
            x = layers[-1](self._embed(x, layers[-1:]), step, sample_rows)
        else:
            x = self.gather_rows(x, sample_rows)
        x = self.decoder.final_layernorm(x)
        return self.gather_logits(self.output_layer(x))

    def write_kv_cache(self, x: Value, step: Step, layers: Sequence["TransformerLayer"]) -> Value:
        """Run the last layers of a step that samples nothing: up to the last keys and values.

        Args:
            x: as in `construct`.
        Returns:
            float32 [max_rows, 1], which holds nothing.
        """
        x = self(x, step, layers[:-1])
        x = self._embed(x, layers[-1:])
        return layers[-1].self_attention.write_kv_cache(x, step)

    def _embed(self, x: Value, layers: Sequence["TransformerLayer"]) -> Value:
        is_first = len(layers) > 0 and layers[0] is self.decoder.layers[0]
        return self.embedding(x) if is_first else x


class LanguageModelEmbedding(Module):
    """Token embedding (Megatron-Core's name and place for it)."""

    def __init__(self, config: GlmConfig, settings: RunnerSettings) -> None:
        super().__init__()
        sizes = partition(config, settings.tensor_parallel)
        self.word_embeddings = Embedding(
            sizes.vocab_size_per_partition,
            config.hidden_size,
            settings.params_dtype,
            first_id=sizes.vocab_begin,
            vocab_size=sizes.vocab_size_per_partition * settings.model_parallel,
        )
        self.all_reduce = AllReduce(config.hidden_size, settings.tensor_parallel)

    def construct(self, token_ids: Value) -> Value:
        """int32 [max_rows] -> float32 [max_rows, hidden_size]; one rank has a token's row."""
        return self.all_reduce(self.word_embeddings(token_ids))


class TransformerBlock(nn.Cell):
    """Holds all layers in order, and the final norm; GPTModel calls them."""

    def __init__(self, config: GlmConfig, settings: RunnerSettings) -> None:
        super().__init__()
        self.layers = nn.CellList(
            [
                TransformerLayer(config, settings, f"decoder.layers.{number}")
                for number in range(config.num_hidden_layers)
            ]
        )
        self.final_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class TransformerLayer(Module):
    """x += post_self_attn_norm(attn(input_norm x)); x += post_mlp_norm(mlp(pre_mlp_norm x)).

    The norms before attention and MLP are inside `linear_qkv` and `linear_fc1`. GLM-4-0414 norms
    what a branch makes too, before it is added to x; GLM-4 and ChatGLM add it as it is.
    Source: transformers 4.51.3 `Glm4DecoderLayer`; `GlmDecoderLayer`, which is ChatGLM's `GLMBlock`
    too.
    """

    def __init__(self, config: GlmConfig, settings: RunnerSettings, name: str) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config, settings, f"{name}.self_attention")
        self.gather_rows = GatherRows(config.hidden_size)
        self.post_self_attn_layernorm = _make_residual_join(config)
        self.mlp = MLP(config, settings, f"{name}.mlp")
        self.post_mlp_layernorm = _make_residual_join(config)

    def construct(self, x: Value, step: Step, sample_rows: Value | None = None) -> Value:
        """The residual stream, float32 [max_rows, hidden_size] -> the same shape.

        Args:
            sample_rows: int32 [max_samples], the only rows that are wanted of the result, which has
                no others then.
        """
        h = self.self_attention(x, step, sample_rows)
        if sample_rows is not None:
            x = self.gather_rows(x, sample_rows)
        x = self.post_self_attn_layernorm(h, residual=x)
        h = self.mlp(x)
        return self.post_mlp_layernorm(h, residual=x)


def _make_residual_join(config: GlmConfig) -> RmsNormAdd | ResidualAdd:
    if config.has_sandwich_norms:
        return RmsNormAdd(config.hidden_size, config.rms_norm_eps)
    return ResidualAdd(config.hidden_size)


class SelfAttention(Module):
    """GQA self-attention with partial, interleaved RoPE and a paged KV cache.

    A rank attends with its own heads; its part is summed with the other ranks'.
    Source: transformers 4.51.3 `Glm4Attention`; GQA: Ainslie et al. 2023, arXiv:2305.13245.
    """

    def __init__(self, config: GlmConfig, settings: RunnerSettings, name: str) -> None:
        super().__init__()
        sizes = partition(config, settings.tensor_parallel)
        self.linear_qkv = NormLinear(
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
        self.core_attention = PagedAttention(
            sizes.num_attention_heads_per_partition,
            sizes.num_key_value_heads_per_partition,
            config.head_dim,
            settings,
        )
        self.gather_rows = GatherRows(sizes.query_size_per_partition)
        self.linear_proj = RowParallelLinear(config, QUERY, settings, f"{name}.linear_proj")

    def construct(self, x: Value, step: Step, sample_rows: Value | None = None) -> Value:
        """x before its norm, all sequences packed on axis 0; the same shape, or some rows of it."""
        h = self.core_attention(self.linear_qkv(x), step.cos_sin, step.attn_metadata)
        if sample_rows is not None:
            h = self.gather_rows(h, sample_rows)
        return self.linear_proj(h)

    def write_kv_cache(self, x: Value, step: Step) -> Value:
        """x before its norm; keys and values are written and nothing is attended to."""
        qkv = self.linear_qkv(x)
        return self.core_attention.write_kv_cache(qkv, step.cos_sin, step.attn_metadata)


class MLP(Module):
    """SwiGLU feed-forward: fc2(silu(gate(norm(x))) * up(norm(x))).

    A rank has its own inner columns; its part is summed with the other ranks'.
    Source: transformers 4.51.3 `Glm4MLP`.
    """

    def __init__(self, config: GlmConfig, settings: RunnerSettings, name: str) -> None:
        super().__init__()
        ffn = partition(config, settings.tensor_parallel).intermediate_size_per_partition
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.linear_fc1 = NormGatedLinear(hidden, ffn, eps, settings, f"{name}.linear_fc1")
        self.linear_fc2 = RowParallelLinear(config, FFN, settings, f"{name}.linear_fc2")

    def construct(self, x: Value) -> Value:
        """x before its norm; the same shape."""
        return self.linear_fc2(self.linear_fc1(x))
