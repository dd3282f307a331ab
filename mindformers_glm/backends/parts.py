"""The parts of a network by which one device is compared with another, in the order of computing.

A part is given to both devices with the same inputs: what the device under test has made of the
parts before. So an error does not grow from part to part, and where one is too large the fault is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mindformers_glm.backends.runner import ModelBatch


@dataclass(frozen=True)
class PartKind:
    """A part that every layer has, or the network once.

    Attributes:
        name: by Megatron-Core's names.
        num_roundings: how often a value is rounded to the type of the activations on its way from
            the part's inputs to its result; the result itself is one.
        meaning: what may be wrong where it differs.
    """

    name: str
    num_roundings: int
    meaning: str


_WEIGHT = "a weight that was not loaded or lies in another order, or another product of matrices"
_NORM = "another eps, another weight, or a norm that is missing"
_ROTARY = (
    "another rope_theta, halves that are rotated in place of neighbouring pairs, other positions, "
    "or another share of each head that is rotated"
)
_CACHE = "a row written to another slot, KV heads in another order, or nothing written"
_RESIDUAL = "something else that was added, or a norm that should not be there"

LAYER_PARTS = (
    PartKind("input_layernorm", 1, _NORM),
    PartKind("linear_qkv query", 2, f"{_WEIGHT}, or a bias"),
    PartKind("linear_qkv key", 2, f"{_WEIGHT} (KV heads that are shifted), or a bias"),
    PartKind("linear_qkv value", 2, f"{_WEIGHT} (KV heads that are shifted), or a bias"),
    PartKind("rotary query", 4, _ROTARY),
    PartKind("rotary key", 4, _ROTARY),
    PartKind("key_cache", 0, _CACHE),
    PartKind("value_cache", 0, _CACHE),
    PartKind(
        "core_attention",
        6,
        "another mask, other lengths, another block table, another scale, or queries that read "
        "other KV heads than their own",
    ),
    PartKind("linear_proj", 1, _WEIGHT),
    PartKind("post_self_attn_layernorm", 1, _NORM),
    PartKind("residual of attention", 1, _RESIDUAL),
    PartKind("pre_mlp_layernorm", 1, _NORM),
    PartKind("linear_fc1 gate", 1, f"{_WEIGHT} (gate and up that are swapped)"),
    PartKind("linear_fc1 up", 1, f"{_WEIGHT} (gate and up that are swapped)"),
    PartKind("activation", 4, "another activation than silu(gate) * up"),
    PartKind("linear_fc2", 1, _WEIGHT),
    PartKind("post_mlp_layernorm", 1, _NORM),
    PartKind("residual of MLP", 1, _RESIDUAL),
)
_FIRST_PART = PartKind("embedding", 1, f"{_WEIGHT}, or other token ids")
_LAST_PARTS = (
    PartKind("final_layernorm", 1, _NORM),
    PartKind("logits", 1, f"{_WEIGHT}, or other rows than the sampled ones"),
)
PART_KINDS = {kind.name: kind for kind in (_FIRST_PART, *LAYER_PARTS, *_LAST_PARTS)}


@dataclass(frozen=True)
class Part:
    """One part; `layer` is None where the network has it once."""

    name: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.name if self.layer is None else f"layer {self.layer}, {self.name}"


# float32, of what a step makes of each part; rows are tokens, or slots of a cache.
PartValues = dict[Part, np.ndarray]

EMBEDDING, FINAL_LAYERNORM, LOGITS = (Part(kind.name) for kind in (_FIRST_PART, *_LAST_PARTS))


def list_parts(num_layers: int) -> Sequence[Part]:
    """Every part of a network, in the order of computing."""
    layers = [Part(kind.name, layer) for layer in range(num_layers) for kind in LAYER_PARTS]
    return [EMBEDDING, *layers, FINAL_LAYERNORM, LOGITS]


class PartReference(Protocol):
    """A device that says what the parts of a network should be.

    It has two KV caches: one with what the device under test has made, one of its own.
    """

    def follow(self, batch: ModelBatch, given: PartValues) -> PartValues:
        """What each part should make of `given`, the results of the parts before it.

        Where `given` ends early, because a step did, so does what is returned.
        """
        ...

    def run(self, batch: ModelBatch) -> PartValues:
        """What each part makes of its own results: the whole network."""
        ...

    def norms(self, x: np.ndarray) -> PartValues:
        """What each norm makes of float32 [rows, hidden_size]."""
        ...
