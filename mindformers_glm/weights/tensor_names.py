"""How each dialect of the family names its tensors, and what lies on their axes.

Left: Megatron-Core / Transformer-Engine names (a norm weight that is fused into the linear after
it is called `layer_norm_weight`). Right: Hugging Face `GlmForCausalLM` and `Glm4ForCausalLM`,
transformers 4.51.3; ChatGLM by the index of chatglm3-6b-32k. An axis is a row of named blocks
(core/sharding.py).
"""

from dataclasses import dataclass, replace

from mindformers_glm.core.sharding import FFN, HIDDEN, KEY_VALUE, QUERY, VOCAB, Axis

# A tensor's name and its axes; a parameter's name and the tensors that are stacked in it.
NamedTensor = tuple[str, tuple[Axis, ...]]
LayerRule = tuple[str, tuple[NamedTensor, ...]]

_HIDDEN, _VOCAB, _FFN, _GATE_UP = (HIDDEN,), (VOCAB,), (FFN,), (FFN, FFN)
_QUERY, _KEY_VALUE, _FUSED_QKV = (QUERY,), (KEY_VALUE,), (QUERY, KEY_VALUE, KEY_VALUE)

QKV_NORM = "self_attention.linear_qkv.layer_norm_weight"
QKV, QKV_BIAS = "self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"
PROJ = "self_attention.linear_proj.weight"
FC1_NORM = "mlp.linear_fc1.layer_norm_weight"
FC1, FC2 = "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"
# The norms in front of a linear layer, which a quantizing tool may give a bias: a second row then.
SHIFTED_NORMS = (QKV_NORM, FC1_NORM)
# What an int8 cache's integers of a channel stand for, and where msModelSlim keeps it.
KV_SCALES = "self_attention.core_attention.kv_scales."


def _kv_scales(module: str) -> tuple[LayerRule, ...]:
    return tuple(
        (
            f"{KV_SCALES}{name}_{what}",
            ((f"{module}{name[0]}_proj.kv_cache_{what}", (_KEY_VALUE,)),),
        )
        for name in ("key", "value")
        for what in ("scale", "offset")
    )


# The matrices of a layer, which quantizing tools make something else of.
LINEARS = (QKV, PROJ, FC1, FC2)


@dataclass(frozen=True)
class TensorNames:
    """The tensors of one dialect.

    layers: what comes before a layer's number.
    layer: (parameter within decoder.layers.{i}, its tensors within `layers`{i}).
    attention_bias: the same of the q, k and v biases, which some checkpoints lack.
    kv_scales: the same of the scales of an int8 KV cache, which few have.
    output_repeats: other names under which tools export the output layer once more.
    """

    embedding: NamedTensor
    final_norm: NamedTensor
    output: NamedTensor
    layers: str
    layer: tuple[LayerRule, ...]
    attention_bias: LayerRule
    kv_scales: tuple[LayerRule, ...]
    output_repeats: tuple[str, ...] = ()


_GLM = TensorNames(
    embedding=("model.embed_tokens.weight", (_VOCAB, _HIDDEN)),
    final_norm=("model.norm.weight", (_HIDDEN,)),
    output=("lm_head.weight", (_VOCAB, _HIDDEN)),
    layers="model.layers.",
    layer=(
        (QKV_NORM, (("input_layernorm.weight", (_HIDDEN,)),)),
        (
            QKV,
            (
                ("self_attn.q_proj.weight", (_QUERY, _HIDDEN)),
                ("self_attn.k_proj.weight", (_KEY_VALUE, _HIDDEN)),
                ("self_attn.v_proj.weight", (_KEY_VALUE, _HIDDEN)),
            ),
        ),
        (PROJ, (("self_attn.o_proj.weight", (_HIDDEN, _QUERY)),)),
        (FC1_NORM, (("post_attention_layernorm.weight", (_HIDDEN,)),)),
        # The gate's rows, then the up projection's.
        (FC1, (("mlp.gate_up_proj.weight", (_GATE_UP, _HIDDEN)),)),
        (FC2, (("mlp.down_proj.weight", (_HIDDEN, _FFN)),)),
    ),
    attention_bias=(
        QKV_BIAS,
        (
            ("self_attn.q_proj.bias", (_QUERY,)),
            ("self_attn.k_proj.bias", (_KEY_VALUE,)),
            ("self_attn.v_proj.bias", (_KEY_VALUE,)),
        ),
    ),
    kv_scales=_kv_scales("self_attn."),
)
_GLM4 = replace(
    _GLM,
    layer=(
        *_GLM.layer,
        ("post_self_attn_layernorm.weight", (("post_self_attn_layernorm.weight", (_HIDDEN,)),)),
        ("post_mlp_layernorm.weight", (("post_mlp_layernorm.weight", (_HIDDEN,)),)),
    ),
)
_CHATGLM = TensorNames(
    embedding=("transformer.embedding.word_embeddings.weight", (_VOCAB, _HIDDEN)),
    final_norm=("transformer.encoder.final_layernorm.weight", (_HIDDEN,)),
    output=("transformer.output_layer.weight", (_VOCAB, _HIDDEN)),
    layers="transformer.encoder.layers.",
    layer=(
        (QKV_NORM, (("input_layernorm.weight", (_HIDDEN,)),)),
        (QKV, (("self_attention.query_key_value.weight", (_FUSED_QKV, _HIDDEN)),)),
        (PROJ, (("self_attention.dense.weight", (_HIDDEN, _QUERY)),)),
        (FC1_NORM, (("post_attention_layernorm.weight", (_HIDDEN,)),)),
        (FC1, (("mlp.dense_h_to_4h.weight", (_GATE_UP, _HIDDEN)),)),
        (FC2, (("mlp.dense_4h_to_h.weight", (_HIDDEN, _FFN)),)),
    ),
    attention_bias=(QKV_BIAS, (("self_attention.query_key_value.bias", (_FUSED_QKV,)),)),
    kv_scales=_kv_scales("self_attention.query_key_value."),
    output_repeats=("lm_head.weight",),
)

# model_type -> names.
TENSOR_NAMES = {"glm4": _GLM4, "glm": _GLM, "chatglm": _CHATGLM}
