"""Which checkpoint tensors fill which parameter.

The names of both sides stand in weights/tensor_names.py; whether a checkpoint holds exactly those
tensors is for weights/rule_checks.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import cut_blocks
from mindformers_glm.core.dtypes import DTYPE_BYTES
from mindformers_glm.core.errors import CheckpointError
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
from mindformers_glm.weights.tensor_names import (
    KV_SCALES,
    LINEARS,
    QKV,
    SHIFTED_NORMS,
    TENSOR_NAMES,
    NamedTensor,
)


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
        some = f"{len(missing)} missing: {list_names(missing)}"
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
