"""compressed-tensors, the format of llm-compressor: groups of layers, each with its scheme.

Sources: what llm-compressor 0.5.1 writes, compared with its own logits; the fields of
`QuantizationConfig` in compressed-tensors 0.9.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, STATIC, StoredTensors
from mindformers_glm.quantization import checks
from mindformers_glm.quantization.compressed_tensors_linear import (
    PACKED,
    CompressedLinear,
    GroupSettings,
)
from mindformers_glm.quantization.plain_format import PlainFormat

_INTS, _FLOATS = "int-quantized", "float-quantized"
_FORMATS = (PACKED, _INTS, _FLOATS, "naive-quantized")
_KV_SCALE = re.compile(r".+\.([kv]_|[kv]_proj\.output_)(scale|zero_point)")
_PATTERN, _CLASS = "re:", "Linear"  # what a target may be besides a layer's whole name


@dataclass(frozen=True)
class CompressedTensorsFormat(PlainFormat):
    """quantization_config with quant_method compressed-tensors."""

    groups: tuple[GroupSettings, ...]
    ignored: tuple[str, ...]
    source: StoredTensors

    @property
    def tool(self) -> str:
        """See CheckpointFormat."""
        return f"compressed-tensors ({', '.join(sorted({group.layout for group in self.groups}))})"

    def linear(self, layer: str, shape: tuple[int, int]) -> CompressedLinear | None:
        """See CheckpointFormat."""
        if _find_target(self.ignored, layer) is not None:
            return None
        # Of a target that several groups name, the tool takes the last one's scheme.
        by_target = {target: group for group in self.groups for target in group.targets}
        target = _find_target(by_target, layer)
        if target is None:
            return None
        return CompressedLinear(layer, shape, by_target[target], self.source)

    def surplus(self) -> Mapping[str, str]:
        """See CheckpointFormat."""
        names = self.source.entries
        return {
            name: "scales of a quantized KV cache" for name in names if _KV_SCALE.fullmatch(name)
        }

    def zeros(self) -> Mapping[str, str]:
        """See CheckpointFormat; older tools write zero points of symmetric layers too."""
        names, end = self.source.entries, ".weight_zero_point"
        return {name: "a zero point of a symmetric layer" for name in names if name.endswith(end)}


def _find_target(targets: Iterable[str], layer: str) -> str | None:
    """The one that counts of all that name a layer, in whatever order groups name them.

    As the tool ranks them: the whole name before patterns, those by the alphabet, and both before
    what fits the class. Source: `find_name_or_class_matches` of compressed-tensors 0.9, and
    `match_named_modules`, which has taken its place.
    """
    ranked = sorted(targets, key=lambda target: (_PATTERN in target, target))
    return next((t for name in (layer, _CLASS) for t in ranked if _is_match(t, name)), None)


def _is_match(target: str, name: str) -> bool:
    if target.startswith(_PATTERN):
        return re.match(target.removeprefix(_PATTERN), name) is not None
    return target == name


def open_format(
    raw: Mapping[str, Any], where: str, source: StoredTensors
) -> CompressedTensorsFormat:
    """Read quantization_config.

    Raises:
        CheckpointError: it is not what the tool writes.
        UnsupportedError: a format, a scheme or a transform that this version does not read.
    """
    groups, ignored = raw.get("config_groups"), raw.get("ignore") or []
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{where} has no config_groups: download config.json again.")
    if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
        raise CheckpointError(f"{where} has {ignored!r:.60} for ignore, expected names.")
    for key, what in (("sparsity_config", "sparse"), ("transform_config", "rotated")):
        if raw.get(key):
            raise UnsupportedError(
                f"{where} has {key}: {what} weights are not supported, use a checkpoint without."
            )
    found = []
    for name, group in groups.items():
        try:
            found.append(_read_group(group, raw.get("format")))
        except (KeyError, TypeError, AttributeError):
            raise CheckpointError(
                f"{where} has a {name!r:.40} that is not a scheme: download config.json again."
            ) from None
        except UnsupportedError as problem:
            raise UnsupportedError(f"{where}, {name!r:.40}: {problem}") from None
    names = [*ignored, *(target for group in found for target in group.targets)]
    patterns = (name.removeprefix(_PATTERN) for name in names if name.startswith(_PATTERN))
    checks.check_patterns(patterns, where)
    return CompressedTensorsFormat(tuple(found), tuple(ignored), source)


def _read_group(group: Mapping[str, Any], whole_format: Any) -> GroupSettings:
    weights, inputs = group["weights"], group.get("input_activations")
    _check_symmetric(weights, "weights")
    if inputs is not None:
        _check_symmetric(inputs, "input_activations")
    layout = group.get("format") or whole_format
    kind, bits = weights["type"], weights["num_bits"]
    strategy, size = weights["strategy"], weights.get("group_size")
    problems = {
        f"the format {layout!r:.40}": layout not in _FORMATS,
        f"{bits!r:.20}-bit {kind!r:.20} weights": type(bits) is not int
        or (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)),
        f"{kind!r:.20} weights in the format {layout!r:.40}": (kind == "float", layout)
        in ((True, PACKED), (True, _INTS), (False, _FLOATS)),
        f"{strategy!r:.40} scales": strategy not in ("tensor", "channel", "group"),
        "output_activations": bool(group.get("output_activations")),
        "weights that are quantized while they are loaded": bool(weights.get("dynamic")),
        **_activation_problems(inputs, weights, kind),
    }
    for what, is_so in problems.items():
        if is_so:
            raise UnsupportedError(
                f"{what} are not read by this version; {', '.join(_FORMATS)} are, with int4, int8 "
                "and FP8 weights by tensor, channel or group, and int8 activations by token, or "
                "static by tensor."
            )
    if strategy == "group" and (type(size) is not int or size < 1):
        raise TypeError
    activation = FLOAT
    # FP8 weights run as the float ones they mean, whatever a card does with activations.
    if inputs is not None and kind != "float":
        activation = DYNAMIC if inputs["dynamic"] else STATIC
    return GroupSettings(
        targets=tuple(map(str, group["targets"])),
        layout=layout,
        bits=bits,
        is_float=kind == "float",
        strategy=strategy,
        group_size=size if strategy == "group" else None,
        is_symmetric=bool(weights["symmetric"]),
        activation=activation,
        has_input_zero=inputs is not None and activation == STATIC and not inputs["symmetric"],
        # "weight" and "static" leave columns in their order, with groups one behind the other.
        has_order=weights.get("actorder") in ("group", "dynamic", True),
    )


def _check_symmetric(arguments: Mapping[str, Any], what: str) -> None:
    """Refuse what only looks like a truth value: the string "false" would count as true."""
    value = arguments.get("symmetric", True)
    if not isinstance(value, bool):
        raise UnsupportedError(
            f"{what} with symmetric {value!r:.40} are not read, expected true or false: download "
            "config.json again."
        )


def _activation_problems(
    inputs: Mapping[str, Any] | None, weights: Mapping[str, Any], kind: str
) -> dict[str, bool]:
    """What is wrong with integer activations; FP8 ones are left as they are."""
    if inputs is None or kind == "float":
        return {}
    is_dynamic, strategy = inputs["dynamic"], inputs["strategy"]
    is_static = is_dynamic is False
    return {
        f"{inputs['num_bits']!r:.20}-bit {inputs['type']!r:.20} activations": (
            (inputs["num_bits"], inputs["type"]) != (8, "int")
        ),
        f"activations with dynamic {is_dynamic!r:.20} by {strategy!r:.20}": (
            (is_dynamic, strategy) not in ((True, "token"), (False, "tensor"))
        ),
        "asymmetric dynamic activations": is_dynamic is True and not inputs["symmetric"],
        "static activations with scales of groups or zero points of weights": is_static
        and (weights["strategy"] == "group" or not weights["symmetric"]),
    }
