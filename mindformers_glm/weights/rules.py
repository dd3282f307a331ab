"""Which checkpoint tensors fill which parameter: the one place that knows both namings.

Left: Megatron-Core / Transformer-Engine names (a norm weight that is fused into the linear after
it is called `layer_norm_weight`). Right: Hugging Face `Glm4ForCausalLM`, transformers 4.51.3.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.log import note
from mindformers_glm.core.sharding import (
    FFN,
    HIDDEN,
    KEY_VALUE,
    QUERY,
    VOCAB,
    Axis,
    BlockCuts,
    Piece,
    TensorParallel,
    cut_blocks,
    cut_tensor,
    describe_axis,
    stored_length,
)
from mindformers_glm.weights.checkpoint import Checkpoint, TensorEntry

# The axes of the tensors, each a row of blocks (core/sharding.py).
_HIDDEN, _VOCAB, _FFN, _GATE_UP = (HIDDEN,), (VOCAB,), (FFN,), (FFN, FFN)
_QUERY, _KEY_VALUE = (QUERY,), (KEY_VALUE,)

_EMBEDDING = ("model.embed_tokens.weight", (_VOCAB, _HIDDEN))
_OUTPUT = ("lm_head.weight", (_VOCAB, _HIDDEN))
# (parameter within decoder.layers.{i}, its sources within model.layers.{i} with their axes)
_LAYER_RULES = (
    (
        "self_attention.linear_qkv.layer_norm_weight",
        (("input_layernorm.weight", (_HIDDEN,)),),
    ),
    (
        "self_attention.linear_qkv.weight",
        (
            ("self_attn.q_proj.weight", (_QUERY, _HIDDEN)),
            ("self_attn.k_proj.weight", (_KEY_VALUE, _HIDDEN)),
            ("self_attn.v_proj.weight", (_KEY_VALUE, _HIDDEN)),
        ),
    ),
    (
        "self_attention.linear_proj.weight",
        (("self_attn.o_proj.weight", (_HIDDEN, _QUERY)),),
    ),
    (
        "post_self_attn_layernorm.weight",
        (("post_self_attn_layernorm.weight", (_HIDDEN,)),),
    ),
    (
        "mlp.linear_fc1.layer_norm_weight",
        (("post_attention_layernorm.weight", (_HIDDEN,)),),
    ),
    # The gate's rows, then the up projection's.
    ("mlp.linear_fc1.weight", (("mlp.gate_up_proj.weight", (_GATE_UP, _HIDDEN)),)),
    ("mlp.linear_fc2.weight", (("mlp.down_proj.weight", (_HIDDEN, _FFN)),)),
    ("post_mlp_layernorm.weight", (("post_mlp_layernorm.weight", (_HIDDEN,)),)),
)
_BIAS_RULE = (
    "self_attention.linear_qkv.bias",
    (
        ("self_attn.q_proj.bias", (_QUERY,)),
        ("self_attn.k_proj.bias", (_KEY_VALUE,)),
        ("self_attn.v_proj.bias", (_KEY_VALUE,)),
    ),
)

_LAYER_NUMBER = re.compile(r"model\.layers\.(\d+)\.")
# Constants that some exporters save; they follow from the config.
_IGNORED = re.compile(r".*\brotary_emb\.inv_freq")


@dataclass(frozen=True)
class SourceTensor:
    """A tensor the checkpoint must hold.

    axes: the blocks of each axis, by the config.json keys that give their lengths.
    pieces: what is read of it; all of it, or one rank's share.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class WeightRule:
    """One parameter and the tensors whose pieces fill it, stacked on axis 0.

    unused: tensors that may be there as well and are not read.
    """

    parameter: str
    sources: tuple[SourceTensor, ...]
    unused: tuple[str, ...] = ()


def build_rules(config: GlmConfig, cuts: BlockCuts | None = None) -> tuple[WeightRule, ...]:
    """List every parameter of the network with its sources.

    Args:
        cuts: how long each block is in the checkpoint and what is taken of it; None: a whole
            checkpoint, of which everything is taken.
    """
    known_cuts = cut_blocks(config, TensorParallel()) if cuts is None else cuts

    def source(name: str, axes: tuple[Axis, ...]) -> SourceTensor:
        shape = tuple(stored_length(axis, known_cuts) for axis in axes)
        return SourceTensor(name, shape, axes, cut_tensor(axes, known_cuts))

    layer_rules = (*_LAYER_RULES, _BIAS_RULE) if config.attention_bias else _LAYER_RULES
    rules = [WeightRule("embedding.word_embeddings.weight", (source(*_EMBEDDING),))]
    rules += [
        WeightRule(
            f"decoder.layers.{layer}.{parameter}",
            tuple(source(f"model.layers.{layer}.{name}", axes) for name, axes in sources),
        )
        for layer in range(config.num_hidden_layers)
        for parameter, sources in layer_rules
    ]
    rules.append(
        WeightRule("decoder.final_layernorm.weight", (source("model.norm.weight", (_HIDDEN,)),))
    )
    if config.tie_word_embeddings:
        # Hugging Face overwrites a stored lm_head with the embedding, too.
        rules.append(WeightRule("output_layer.weight", (source(*_EMBEDDING),), (_OUTPUT[0],)))
    else:
        rules.append(WeightRule("output_layer.weight", (source(*_OUTPUT),)))
    return tuple(rules)


def resolve_attention_bias(config: GlmConfig, checkpoint: Checkpoint) -> GlmConfig:
    """Let the tensors decide `attention_bias` where config.json says otherwise.

    GLM-Z1-9B's files are reported both ways, so the config alone is not to be trusted.

    Raises:
        CheckpointError: some layers hold q, k and v biases and some do not.
    """
    # Layers that are missing altogether are for check_rules to tell.
    wanted = [
        f"model.layers.{layer}.{name}"
        for layer in range(config.num_hidden_layers)
        if f"model.layers.{layer}.self_attn.q_proj.weight" in checkpoint.entries
        for name, _ in _BIAS_RULE[1]
    ]
    missing = [name for name in wanted if name not in checkpoint.entries]
    has_bias = not missing if wanted else config.attention_bias
    if missing and len(missing) < len(wanted):
        some = _list_names(f"{len(missing)} missing", missing, "")
        raise CheckpointError(
            f"{checkpoint.folder} holds {len(wanted) - len(missing)} of {len(wanted)} q, k and v "
            f"biases, it must hold all or none ({some}): download the model again."
        )
    if has_bias == config.attention_bias:
        return config
    note(
        f"config.json says attention_bias={str(config.attention_bias).lower()}, but "
        f"{'every layer holds' if has_bias else 'no layer holds'} q, k and v biases: "
        "the weights decide."
    )
    return replace(config, attention_bias=has_bias)


def check_rules(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> None:
    """Check that the checkpoint holds exactly the tensors the rules ask for.

    Raises:
        CheckpointError: one sentence naming what is missing, wrongly shaped or typed, or unknown.
    """
    sources = {source.name: source for rule in rules for source in rule.sources}
    unused = {name for rule in rules for name in rule.unused}
    entries = checkpoint.entries
    wrong_shapes, wrong_dtypes = [], []
    for name, source in sources.items():
        if name in entries:
            if entries[name].shape != source.shape:
                wrong_shapes.append(_describe_shape(source, entries[name]))
            if entries[name].dtype not in DTYPE_BYTES:
                wrong_dtypes.append(f"{name} is {entries[name].dtype}")
    missing = [name for name in sources if name not in entries]
    unknown = [
        name
        for name in entries
        if name not in sources and name not in unused and not _IGNORED.fullmatch(name)
    ]
    problems = [
        _list_names(f"{len(missing)} missing", missing, _missing_hint(missing, sources, entries)),
        _list_names(f"{len(wrong_shapes)} of another shape", wrong_shapes, ""),
        _list_names(
            f"{len(wrong_dtypes)} not bfloat16, float16 or float32",
            wrong_dtypes,
            "convert float64 to float32; weights that are quantized already are not supported by "
            "this version",
        ),
        _list_names(f"{len(unknown)} unknown", unknown, _unknown_hint(unknown, sources)),
    ]
    if found := "; ".join(problem for problem in problems if problem):
        raise CheckpointError(f"The tensors in {checkpoint.folder} do not fit its config: {found}.")


def _list_names(what: str, names: list[str], hint: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{what}: {', '.join(names[:5])}{more}" + (f" ({hint})" if hint else "")


def _describe_shape(source: SourceTensor, entry: TensorEntry) -> str:
    text = f"{source.name} is {list(entry.shape)}, expected {list(source.shape)}"
    if len(entry.shape) != len(source.shape):
        return text
    triples = zip(source.axes, source.shape, entry.shape, strict=True)
    wrong = [describe_axis(axis) for axis, want, came in triples if want != came]
    return f"{text} by {', '.join(wrong)}"


def _missing_hint(
    missing: list[str], sources: dict[str, SourceTensor], entries: dict[str, TensorEntry]
) -> str:
    if missing == [_OUTPUT[0]]:
        return "config.json may lack tie_word_embeddings: true"
    stored = max(_layer_numbers(list(entries)), default=-1)
    wanted = max(_layer_numbers(list(sources)), default=-1)
    if 0 <= stored < wanted:
        return (
            f"layers 0 to {stored} are there, config.json says num_hidden_layers={wanted + 1}: "
            "a shard is missing or the config is of another model"
        )
    return "is a shard missing?" if missing else ""


def _unknown_hint(unknown: list[str], sources: dict[str, SourceTensor]) -> str:
    wanted = max(_layer_numbers(list(sources)), default=-1)
    if any(layer > wanted for layer in _layer_numbers(unknown)):
        return f"config.json says num_hidden_layers={wanted + 1}"
    return ""


def _layer_numbers(names: list[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := _LAYER_NUMBER.match(name))}
