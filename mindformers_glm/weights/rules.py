"""Which checkpoint tensors fill which parameter, and whether the checkpoint holds exactly those.

The names of both sides stand in weights/tensor_names.py.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mindformers_glm.config.glm_config import QUANTIZED_HINT, GlmConfig
from mindformers_glm.config.partition import cut_blocks
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import (
    CheckpointFormat,
    QuantizedLinear,
    StoredScheme,
    TensorSpec,
)
from mindformers_glm.core.sharding import (
    BlockCuts,
    Piece,
    TensorParallel,
    cut_tensor,
    describe_axis,
    stored_shape,
)
from mindformers_glm.core.stored_schemes import StoredSchemes
from mindformers_glm.system.log import note
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.shards import list_names
from mindformers_glm.weights.tensor_entry import TensorEntry
from mindformers_glm.weights.tensor_names import (
    KV_SCALES,
    LINEARS,
    QKV,
    SHIFTED_NORMS,
    TENSOR_NAMES,
    NamedTensor,
)

_LAYER_NUMBER = re.compile(r"[a-z.]+\.layers\.(\d+)\.")
# What training and export tools leave in a checkpoint and a run does not need; nothing else is let
# through. TRL, LLaMA-Factory: v_head.summary; trlx: v_head.0, v_head.2; OpenRLHF: score.
ALL_ZEROS = "all zeros"  # what `find_surplus` says of tensors that are
_SURPLUS = {
    "constants of RoPE, which follow from config.json": re.compile(
        r"(model|transformer)\.((encoder\.)?layers\.\d+\.self_att(n|ention)\.)?"
        r"rotary_(pos_)?emb\.inv_freq"
    ),
    "a value head": re.compile(r"(v_head|value_head|score)(\.summary|\.\d)?\.(weight|bias)"),
}
# GPTQ and AWQ; MLX; bitsandbytes; FP8, compressed-tensors and msModelSlim; HQQ, AQLM, quanto, EXL2.
_QUANTIZED_TENSOR = re.compile(
    r".+\.(qweight|qzeros|g_idx|scales|biases|SCB|absmax|quant_map|quant_state\..+|"
    r"weight_(scales?|scale_inv|packed|zero_point|offset)|input_(scale|offset)|quant_bias|"
    r"deq_scale|W_q|codebooks|_data|q_(weight|scale|groups|invperm))",
    re.DOTALL,
)
_LORA_TENSOR = re.compile(r".+\.(lora_[A-Za-z_]+|base_layer)(\..+)?", re.DOTALL)


@dataclass(frozen=True)
class SourceTensor:
    """A tensor the checkpoint must hold.

    sizes: what gives each axis its length, in the keys of config.json.
    pieces: what is read of it; all of it, or one rank's share.
    linear: a matrix that is not there as it is: the tensors of a quantized layer that make it.
    """

    name: str
    shape: tuple[int, ...]
    sizes: tuple[str, ...]
    pieces: tuple[Piece, ...]
    linear: QuantizedLinear | None = None

    @property
    def stored(self) -> Mapping[str, TensorSpec]:
        """The tensors themselves."""
        if self.linear is not None:
            return self.linear.tensors
        return {self.name: TensorSpec(self.shape, tuple(DTYPE_BYTES))}

    @property
    def first_tensor(self) -> str:
        """One of them, the only one where it is not quantized."""
        return next(iter(self.stored))


@dataclass(frozen=True)
class WeightRule:
    """One parameter and the tensors whose pieces fill it, stacked on axis 0.

    repeats: tensors that may be there as well if each holds what the first source does.
    """

    parameter: str
    sources: tuple[SourceTensor, ...]
    repeats: tuple[str, ...] = ()


def build_rules(
    config: GlmConfig,
    cuts: BlockCuts | None = None,
    quantized: CheckpointFormat | None = None,
) -> tuple[WeightRule, ...]:
    """List every parameter of the network with its sources.

    Args:
        cuts: how long each block is in the checkpoint and what is taken of it; None: a whole
            checkpoint, of which everything is taken.
        quantized: what a quantizing tool has made of the linear layers (`Checkpoint.quantized`).
    Raises:
        CheckpointError, UnsupportedError: what the tool says of a layer cannot be, or be read.
    """
    known_cuts = cut_blocks(config, TensorParallel()) if cuts is None else cuts
    names = TENSOR_NAMES[config.model_type]

    def source(tensor: NamedTensor, prefix: str = "", is_linear: bool = False) -> SourceTensor:
        name, axes = tensor
        shape, linear = stored_shape(axes, known_cuts), None
        if is_linear and quantized is not None:
            rows, columns = shape
            linear = quantized.linear((prefix + name).removesuffix(".weight"), (rows, columns))
        return SourceTensor(
            name=prefix + name,
            shape=shape,
            sizes=tuple(config.in_file_keys(describe_axis(axis)) for axis in axes),
            pieces=cut_tensor(axes, known_cuts),
            linear=linear,
        )

    def sources_of(
        parameter: str, tensors: Sequence[NamedTensor], prefix: str
    ) -> list[SourceTensor]:
        is_linear = parameter in LINEARS
        found = [source(tensor, prefix, is_linear) for tensor in tensors]
        if parameter in SHIFTED_NORMS and quantized is not None:
            name, axes = tensors[0]
            if bias := quantized.norm_bias(prefix + name):
                found.append(source((bias, axes)))
        return found

    def repeats_of(tensors: Sequence[NamedTensor], prefix: str) -> tuple[str, ...]:
        return quantized.repeats(prefix + tensors[0][0]) if quantized is not None else ()

    layer_rules = (*names.layer, names.attention_bias) if config.attention_bias else names.layer
    if quantized is not None and quantized.has_kv_scales:
        layer_rules = (*layer_rules, *names.kv_scales)
    rules = [WeightRule("embedding.word_embeddings.weight", (source(names.embedding),))]
    rules += [
        WeightRule(
            f"decoder.layers.{layer}.{parameter}",
            tuple(sources_of(parameter, tensors, f"{names.layers}{layer}.")),
            repeats_of(tensors, f"{names.layers}{layer}."),
        )
        for layer in range(config.num_hidden_layers)
        for parameter, tensors in layer_rules
    ]
    final_norm = WeightRule(
        "decoder.final_layernorm.weight",
        (source(names.final_norm),),
        repeats_of((names.final_norm,), ""),
    )
    rules.append(final_norm)
    is_tied = config.tie_word_embeddings
    output = names.embedding if is_tied else names.output
    repeats = (*names.output_repeats, names.output[0]) if is_tied else names.output_repeats
    output_source = source(output, is_linear=not is_tied)
    rules.append(WeightRule("output_layer.weight", (output_source,), repeats))
    return tuple(rules)


def without_kv_scales(rules: Sequence[WeightRule]) -> tuple[WeightRule, ...]:
    """The rules of a network that takes no scales of an int8 KV cache from the checkpoint."""
    return tuple(rule for rule in rules if KV_SCALES not in rule.parameter)


def resolve_attention_bias(config: GlmConfig, checkpoint: Checkpoint) -> GlmConfig:
    """Let the tensors decide `attention_bias` where config.json says otherwise.

    GLM-Z1-9B's files are reported both ways, so the config alone is not to be trusted.

    Raises:
        CheckpointError: some layers hold q, k and v biases and some do not.
    """
    names = TENSOR_NAMES[config.model_type]
    first_weight = dict(names.layer)[QKV][0][0]
    # Layers that are missing altogether are for check_rules to tell.
    modules = {  # a quantized layer has no tensor called weight
        name.rpartition(".")[0] for name in checkpoint.entries if not name.endswith(".bias")
    }
    first_module = first_weight.removesuffix(".weight")
    wanted = [
        f"{names.layers}{layer}.{bias}"
        for layer in range(config.num_hidden_layers)
        if f"{names.layers}{layer}.{first_module}" in modules
        for bias, _ in names.attention_bias[1]
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
        f"config.json says {config.in_file_keys('attention_bias')}="
        f"{str(config.attention_bias).lower()}, but "
        f"{'every layer holds' if has_bias else 'no layer holds'} q, k and v biases: "
        "the weights decide."
    )
    return replace(config, attention_bias=has_bias)


def check_rules(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> None:
    """Check that the checkpoint holds the tensors the rules ask for, and known surplus at most.

    Raises:
        UnsupportedError: its weights are quantized.
        CheckpointError: one sentence naming what is missing, wrongly shaped or typed, or unknown.
    """
    sources = {name: source for rule in rules for source in rule.sources for name in source.stored}
    entries = checkpoint.entries
    missing = [name for name in sources if name not in entries]
    # Surplus is let through beside a whole network only.
    known = {} if missing else find_surplus(rules, checkpoint)
    unknown = [name for name in entries if name not in sources and name not in known]
    quantized = [name for name in unknown if _QUANTIZED_TENSOR.fullmatch(name)]
    if quantized and checkpoint.quantized is None:
        raise UnsupportedError(
            f"{checkpoint.folder} is quantized ({len(quantized)} tensors such as "
            f"{quantized[0]:.100}), but {QUANTIZED_HINT}."
        )
    expected = dict(sources)
    for rule in rules:
        expected |= {name: replace(rule.sources[0], name=name) for name in rule.repeats}
    wrong_shapes, wrong_dtypes, wrong_types = [], [], []
    for name, source in expected.items():
        if name not in entries:
            continue
        spec = source.stored[name]
        if entries[name].shape != spec.shape:
            wrong_shapes.append(_describe_shape(name, source, entries[name]))
        if entries[name].dtype not in spec.dtypes:
            if source.linear is None:
                wrong_dtypes.append(f"{name} is {entries[name].dtype}")
            else:
                wrong_types.append(
                    f"{name} is {entries[name].dtype}, not {' or '.join(spec.dtypes)}"
                )
    problems = [
        _list_names(f"{len(missing)} missing", missing, _missing_hint(missing, sources, entries)),
        _list_names(f"{len(wrong_shapes)} of another shape", wrong_shapes, ""),
        _list_names(
            f"{len(wrong_dtypes)} not bfloat16, float16 or float32",
            wrong_dtypes,
            "convert float64 to float32; nothing in the folder says how integers are quantized",
        ),
        _list_names(f"{len(wrong_types)} of another type", wrong_types, ""),
        _list_names(f"{len(unknown)} unknown", unknown, _unknown_hint(unknown, sources)),
    ]
    if found := "; ".join(problem for problem in problems if problem):
        raise CheckpointError(f"The tensors in {checkpoint.folder} do not fit its config: {found}.")


def find_surplus(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> dict[str, str]:
    """Return the tensors of the closed list that are there and not needed: name -> what it is."""
    used = {name for rule in rules for source in rule.sources for name in source.stored}
    repeats = {name: rule.sources[0].name for rule in rules for name in rule.repeats}
    found = {}
    for name in checkpoint.entries:
        if name in repeats:
            found[name] = f"repeats {repeats[name]}"
        for what, pattern in _SURPLUS.items():
            if pattern.fullmatch(name):
                found[name] = what
    if (form := checkpoint.quantized) is not None:
        found |= {name: what for name, what in form.surplus().items() if name not in used}
        zeros = {name: f"{what}, {ALL_ZEROS}" for name, what in form.zeros().items()}
        found |= {name: what for name, what in zeros.items() if name not in used}
    return found


def list_schemes(rules: Sequence[WeightRule]) -> dict[str, tuple[StoredScheme | None, ...]]:
    """How a quantized checkpoint keeps the matrices of each linear layer; None: as float.

    Returns:
        Megatron-Core name of a layer -> a scheme for each tensor that is stacked in it.
    """
    return {
        rule.parameter.removesuffix(".weight"): tuple(
            None if source.linear is None else source.linear.scheme for source in rule.sources
        )
        for rule in rules
        if rule.parameter == "output_layer.weight" or rule.parameter.endswith(tuple(LINEARS))
    }


def find_stored_schemes(rules: Sequence[WeightRule], checkpoint: Checkpoint) -> StoredSchemes:
    """How a checkpoint that `check_rules` has passed is quantized, or that it is not."""
    if checkpoint.quantized is None:
        return StoredSchemes()
    shifted_norms = tuple(
        rule.parameter.removesuffix(".layer_norm_weight")
        for rule in rules
        if rule.parameter.endswith(SHIFTED_NORMS) and len(rule.sources) > 1
    )
    form = checkpoint.quantized
    return StoredSchemes(form.tool, list_schemes(rules), shifted_norms, form.has_kv_scales)


def count_bytes(source: SourceTensor, checkpoint: Checkpoint) -> int:
    """Bytes of the pieces that are read of a tensor."""
    num_elements = sum(piece.num_elements for piece in source.pieces)
    if source.linear is not None:
        stored = sum(checkpoint.entries[name].num_bytes for name in source.stored)
        return stored * num_elements // math.prod(source.shape)
    return num_elements * DTYPE_BYTES[checkpoint.entries[source.name].dtype]


def _list_names(what: str, names: list[str], hint: str) -> str:
    if not names:
        return ""
    return f"{what}: {list_names(names)}" + (f" ({hint})" if hint else "")


def _describe_shape(name: str, source: SourceTensor, entry: TensorEntry) -> str:
    text = f"{name} is {list(entry.shape)}, expected {list(source.stored[name].shape)}"
    if len(entry.shape) != len(source.shape) or source.linear is not None:
        return text
    triples = zip(source.sizes, source.shape, entry.shape, strict=True)
    return f"{text} by {', '.join(size for size, want, came in triples if want != came)}"


def _missing_hint(
    missing: list[str], sources: dict[str, SourceTensor], entries: dict[str, TensorEntry]
) -> str:
    if missing == [TENSOR_NAMES["glm4"].output[0]]:
        return "config.json may lack tie_word_embeddings: true"
    stored = max(_layer_numbers(list(entries)), default=-1)
    wanted = max(_layer_numbers(list(sources)), default=-1)
    if 0 <= stored < wanted:
        return (
            f"layers 0 to {stored} are there, config.json says that there are {wanted + 1}: a "
            "shard is missing or the config is of another model"
        )
    return "is a shard missing?" if missing else ""


def _unknown_hint(unknown: list[str], sources: dict[str, SourceTensor]) -> str:
    if any(_LORA_TENSOR.fullmatch(name) for name in unknown):
        return "a LoRA adapter, which is not supported: merge it with PEFT's merge_and_unload()"
    wanted = max(_layer_numbers(list(sources)), default=-1)
    if any(layer > wanted for layer in _layer_numbers(unknown)):
        return f"config.json says that there are {wanted + 1} layers"
    return ""


def _layer_numbers(names: list[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := _LAYER_NUMBER.match(name))}
