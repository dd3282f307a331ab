"""The linear modules of a checkpoint by name, in the names of whichever dialect they are given."""

import re
from collections.abc import Iterable, Sequence

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.weights.rules import LINEARS, WeightRule
from mindformers_glm.weights.tensor_names import FC2, PROJ

_OUTPUT_LAYER = "output_layer.weight"
_LAYER = re.compile(r"(?:model|transformer\.encoder)\.layers\.(\d+|\*)\.(.+)")
# ChatGLM's names in a layer, and those of GLM and GLM-4.
_IN_A_LAYER = {
    "self_attention.query_key_value": ("q_proj", "k_proj", "v_proj"),
    "self_attention.dense": ("o_proj",),
    "mlp.dense_h_to_4h": ("gate_up_proj",),
    "mlp.dense_4h_to_h": ("down_proj",),
}
_OUTPUTS = ("transformer.output_layer", "lm_head")
_DOWN = re.compile(r".+\.(dense_4h_to_h|down_proj)")


def list_linears(rules: Sequence[WeightRule]) -> list[str]:
    """The names; an embedding that is the output layer, too, is none of them."""
    linear = [rule for rule in rules if _is_linear(rule)]
    others = {source.name for rule in rules if not _is_linear(rule) for source in rule.sources}
    return [
        source.name.removesuffix(".weight")
        for rule in linear
        for source in rule.sources
        if source.name not in others
    ]


def list_row_parallel(rules: Sequence[WeightRule]) -> list[str]:
    """Those of the layers whose columns ranks split."""
    return [
        source.name.removesuffix(".weight")
        for rule in rules
        if rule.parameter.endswith((PROJ, FC2))
        for source in rule.sources
    ]


def _is_linear(rule: WeightRule) -> bool:
    return rule.parameter == _OUTPUT_LAYER or rule.parameter.endswith(tuple(LINEARS))


def list_down_projections(linears: Iterable[str]) -> list[str]:
    """Those whose inputs have the widest ranges."""
    return [name for name in linears if _DOWN.fullmatch(name)]


def has_output_layer(names: Iterable[str]) -> bool:
    """Whether the output layer is among them."""
    return any(name in _OUTPUTS for name in names)


def resolve_names(given: Iterable[str], linears: Sequence[str]) -> frozenset[str]:
    """The checkpoint's names of modules that are given in any dialect's.

    A * in a name stands for any text, such as the number of a layer.

    Raises:
        ConfigError: one is no module.
    """
    found: set[str] = set()
    for name in given:
        patterns = (name, *_translate(name))
        named = {one for one in linears if any(_is_match(one, pattern) for pattern in patterns)}
        if not named:
            raise ConfigError(
                f"--disable_names has {name!r:.100}, which is no linear module of the model: its "
                f"first is {linears[0]}, its last {linears[-1]}."
            )
        found |= named
    return frozenset(found)


def _is_match(name: str, pattern: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def _translate(name: str) -> list[str]:
    """The names that other dialects have for it."""
    if name in _OUTPUTS:
        return list(_OUTPUTS)
    match = _LAYER.fullmatch(name)
    if match is None:
        return []
    number, inner = match[1], match[2]
    for chatglm, others in _IN_A_LAYER.items():
        group = "self_attn" if chatglm.startswith("self_attention") else "mlp"
        if inner == chatglm:
            return [f"model.layers.{number}.{group}.{other}" for other in others]
        if inner in (f"{group}.{other}" for other in others):
            return [f"transformer.encoder.layers.{number}.{chatglm}"]
    return []
