"""How upstream's network runs a checkpoint that is quantized already: layer by layer.

Upstream asks a QuantizationConfig for the method of each linear layer when it builds one. Its own,
GoldenStickConfig, looks for a layer's name anywhere in those of a description and takes the first
that it finds, has no name for a fused gate_up, and lets q decide for k and v. This one is told by
the checkpoint's own schemes, under the names that upstream's layers have.
Source: mindformers 1.7.0, parallel_core/inference/quantization and tensor_parallel/layers.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mindformers.parallel_core.inference.quantization import QuantizationConfig
from mindformers.parallel_core.inference.tensor_parallel.layers import (
    LinearMethodBase,
    UnquantizedLinearMethod,
)

from mindformers_glm.backends.ascend.integer_methods import (
    DynamicMethod,
    IntegerMethod,
    StaticMethod,
    WeightOnlyMethod,
    check_static_input,
)
from mindformers_glm.backends.ascend.support import (
    RUNNING_SCHEMES,
    is_integer_product,
    runs_integers,
)
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantization_scheme import STATIC, keep_integers
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rules import WeightRule

_OUTPUT_LAYER = "output_layer"


class StoredQuantization(QuantizationConfig):
    """The methods of a checkpoint's quantized layers; all others are float.

    methods: by upstream's name of a layer; each belongs to one layer.
    """

    # What upstream's `set_dynamic_inputs` asks about the KV cache of another attention.
    fa3_quant = False
    fa3_quant_layer: frozenset[int] = frozenset()

    def __init__(self, methods: Mapping[str, IntegerMethod]) -> None:
        super().__init__()
        self.methods = dict(methods)

    def get_quant_method(self, layer: Any, prefix: str) -> LinearMethodBase:
        """See QuantizationConfig."""
        return self.methods.get(prefix) or UnquantizedLinearMethod()

    def get_name(self) -> str:
        """See QuantizationConfig; what upstream calls weights of msModelSlim."""
        return "ascend"

    def get_supported_act_dtypes(self) -> list[str]:
        """See QuantizationConfig."""
        return ["bfloat16", "float16"]

    @classmethod
    def get_min_capability(cls) -> int:
        """See QuantizationConfig; of a GPU, which is not meant here."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """See QuantizationConfig; nothing is read from a file of its own."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "StoredQuantization":
        """See QuantizationConfig.

        Raises:
            UnsupportedError: always; what a file says is not enough (`read_quantization`).
        """
        raise UnsupportedError("a checkpoint's tensors tell how it is quantized, not a config.")


def read_quantization(
    rules: Sequence[WeightRule], checkpoint: Checkpoint, compute_dtype: str
) -> StoredQuantization | None:
    """The methods for a checkpoint whose tensors fit the rules; None where all layers are float.

    Raises:
        UnsupportedError: a layer is quantized in a way that upstream's network has no method for.
        CheckpointError: values that cannot be meant.
    """
    if checkpoint.quantized is None:
        return None
    methods = {
        rule.parameter.removesuffix(".weight"): _choose_method(rule, checkpoint, compute_dtype)
        for rule in rules
        if has_integers(rule)
    }
    return StoredQuantization(methods)


def has_integers(rule: WeightRule) -> bool:
    """Whether any matrix that the parameter stacks is quantized in the checkpoint."""
    return any(source.linear is not None and source.linear.scheme for source in rule.sources)


def _choose_method(rule: WeightRule, checkpoint: Checkpoint, compute_dtype: str) -> IntegerMethod:
    layer = rule.parameter.removesuffix(".weight")
    stored = [source.linear.scheme if source.linear else None for source in rule.sources]
    kept = keep_integers(stored)
    inputs = {scheme.static_input for scheme in stored if scheme is not None}
    if len(inputs - {None}) > 1:
        found = ", ".join(f"{one.scale:.6g} and {one.offset:g}" for one in inputs if one)
        raise _unsupported(checkpoint, layer, f"rounds one input by several scales ({found})")
    has_parts = any(scheme is not None and scheme.num_segments > 1 for scheme in stored)
    if kept is None or has_parts or not runs_integers(kept):
        names = sorted({"float" if scheme is None else scheme.name for scheme in stored})
        raise _unsupported(checkpoint, layer, f"is quantized in {' and '.join(names)}")
    if layer == _OUTPUT_LAYER:
        raise _unsupported(checkpoint, layer, "is quantized, which only decoder layers can be")
    if not is_integer_product(kept):
        return WeightOnlyMethod(layer, kept.has_zeros)
    if kept.activation_scale != STATIC:
        return DynamicMethod(layer)
    (static_input,) = inputs
    assert static_input is not None
    check_static_input(layer, static_input, compute_dtype)
    return StaticMethod(layer, static_input)


def _unsupported(checkpoint: Checkpoint, layer: str, problem: str) -> UnsupportedError:
    return UnsupportedError(
        f"MindSpore Transformers' network on Ascend cannot run {checkpoint.folder}: {layer} "
        f"{problem}; it runs {RUNNING_SCHEMES}. Take such a folder or a float one, or run with "
        "--device_target CPU."
    )
