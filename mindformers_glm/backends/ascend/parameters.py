"""Weights into the Parameters of upstream's network, each exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter
from mindspore.common.np_dtype import bfloat16

from mindformers_glm.backends.ascend import nz_format
from mindformers_glm.backends.ascend.full_memory import explain_full_memory
from mindformers_glm.backends.ascend.integer_methods import NUMPY_DTYPES, IntegerMethod
from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM
from mindformers_glm.backends.ascend.quantization import has_integers
from mindformers_glm.backends.ascend.split import upstream_part
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.quantized_view import QuantizedView
from mindformers_glm.weights.rules import WeightRule, build_rules, without_kv_scales

# Our norms are parts of the linear layers that follow them, as Transformer Engine has it.
_UPSTREAM_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
_TIED = "output_layer.weight"


def fill_network(
    network: AscendGlmForCausalLM, config: GlmConfig, rank: TensorParallel, checkpoint: Checkpoint
) -> int:
    """Load a rank's part of a checkpoint into the Parameters; again with other weights.

    Returns:
        The bytes read from the checkpoint.
    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
        MemoryBudgetError: the device is full.
        UnsupportedError: the network was built for other layers to be quantized.
    """
    rules = list_rules(config, rank, checkpoint)
    with explain_full_memory("the weights"):
        read_bytes = load_weights(checkpoint, rules, find_targets(network, rules))
        nz_format.reformat_weights(network)
    return read_bytes


def list_rules(
    config: GlmConfig, rank: TensorParallel, checkpoint: Checkpoint
) -> tuple[WeightRule, ...]:
    """A rank's rules for upstream's network, whose KV cache takes no scales of a checkpoint."""
    cuts = checkpoint.cuts(config, upstream_part(rank))
    return without_kv_scales(build_rules(config, cuts, checkpoint.quantized))


def find_targets(
    network: AscendGlmForCausalLM, rules: Sequence[WeightRule]
) -> dict[str, "ParameterTarget | IntegerTarget"]:
    """By the rules' names of parameters, what each fills in upstream's network.

    Raises:
        UnsupportedError: the network was built for other layers to be quantized.
        RuntimeError: upstream's network has other Parameters than the rules fill (a defect: the
            versions of MindSpore Transformers that are known have exactly these).
    """
    left = dict(network.model.get_params_dict())
    targets: dict[str, ParameterTarget | IntegerTarget] = {}
    methods = _find_methods(network, rules)
    for rule in rules:
        name = upstream_name(rule.parameter)
        if rule.parameter in methods:
            method, layer = methods[rule.parameter], name.removesuffix("weight")
            parts = {part: left.pop(layer + part, None) for part in method.parameters}
            targets[rule.parameter] = IntegerTarget(parts, name, method)
            continue
        is_tied = name == _TIED and name not in left  # the embedding's Parameter, under its name
        targets[rule.parameter] = ParameterTarget(None if is_tied else left.pop(name, None), name)
    missing = [t.name for t in targets.values() if t.lacks_parameters and t.name != _TIED]
    if left or missing:
        raise RuntimeError(
            f"upstream's network has {sorted(left)} besides what is known, and lacks {missing}"
        )
    return targets


def _find_methods(
    network: AscendGlmForCausalLM, rules: Sequence[WeightRule]
) -> dict[str, IntegerMethod]:
    """By the rules' names of weights, the methods of layers that are quantized."""
    quantization = network.model.quant_config
    built = {} if quantization is None else quantization.methods
    methods = {f"{layer}.weight": method for layer, method in built.items()}
    stored = {rule.parameter for rule in rules if has_integers(rule)}
    if others := sorted(stored ^ methods.keys()):
        is_stored = others[0] in stored
        raise UnsupportedError(
            f"{others[0]} is {'quantized' if is_stored else 'float'} in the checkpoint and the "
            f"network was built for {'a float' if is_stored else 'a quantized'} one: build it with "
            "pretrained_model_dir of this checkpoint."
        )
    return methods


def upstream_name(parameter: str) -> str:
    """What upstream calls a parameter of the rules."""
    for ours, theirs in _UPSTREAM_NAMES.items():
        if parameter.endswith(f".{ours}"):
            return parameter.removesuffix(ours) + theirs
    return parameter


@dataclass(frozen=True)
class ParameterTarget:
    """A Parameter of upstream's network that is filled from a checkpoint.

    parameter: None where the network has none of its own, being tied to the embedding.
    """

    parameter: Parameter | None
    name: str

    @property
    def lacks_parameters(self) -> bool:
        """Whether the network does not have it."""
        return self.parameter is None

    def load(self, views: Sequence[Any]) -> None:
        """Take pieces [rows, ...] of a checkpoint, stack them on axis 0 and convert them.

        Raises:
            RuntimeError: the shape is not the Parameter's.
        """
        if self.parameter is None:
            return
        # Types are converted by NumPy: an Atlas 300I Duo has no bfloat16.
        dtype = NUMPY_DTYPES[self.parameter.dtype]
        pieces = [_as_float(view).astype(dtype, copy=False) for view in views]
        data = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        _fill(self.parameter, data, self.name)


@dataclass(frozen=True)
class IntegerTarget:
    """The Parameters of a layer of upstream's network that is quantized in the checkpoint.

    parameters: by their names in the layer; None where the network lacks one.
    """

    parameters: Mapping[str, Parameter | None]
    name: str
    method: IntegerMethod

    @property
    def lacks_parameters(self) -> bool:
        """Whether the network lacks any of them."""
        return None in self.parameters.values()

    def load(self, views: Sequence[Any]) -> None:
        """Take pieces of the layer's matrices, to be stacked, with all that belongs to them.

        Raises:
            CheckpointError, UnsupportedError: see IntegerMethod.read.
            RuntimeError: a shape or a type is not the Parameter's.
        """
        for part, data in self.method.read(views).items():
            parameter = self.parameters[part]
            assert parameter is not None
            if data.dtype != NUMPY_DTYPES[parameter.dtype]:
                raise RuntimeError(f"{part} of {self.name} is {parameter.dtype}, not {data.dtype}")
            _fill(parameter, data, f"{part} of {self.name}")


def _fill(parameter: Parameter, data: np.ndarray, name: str) -> None:
    if tuple(parameter.shape) != data.shape:
        raise RuntimeError(
            f"upstream's {name} is {tuple(parameter.shape)}, its share of the checkpoint "
            f"{data.shape}"
        )
    parameter.init_data()
    # A tensor of a file may begin at any byte, which MindSpore does not take.
    parameter.set_data(ms.from_numpy(np.require(data, requirements=["C", "A"])))


def _as_float(view: Any) -> np.ndarray:
    """A view's values in the type that they are stored in; NumPy itself has no bfloat16."""
    if isinstance(view, QuantizedView):  # a matrix that a tool left float, in several tensors
        return np.concatenate([rows for _, rows in view.row_chunks()])
    is_raw = view.dtype == "bfloat16" and view.data.dtype == np.uint16
    return view.data.view(bfloat16) if is_raw else view.data
