"""The biases that msModelSlim's anti-outlier leaves behind norms, under one name or two.

The old layout keeps a norm twice, as `norm.weight`, `norm.bias` and as `norm.module.weight`,
`norm.module.bias`. Most methods leave zeros; one that shifts activations does not.
Source: outputs of msModelSlim 26.1.0, all of which have zeros.
"""

import re
from collections.abc import Iterable

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import StoredTensors

_NORM_BIAS = re.compile(r".+norm(\.module)?\.bias")
_FLOAT_TYPES = ("float32", "float16", "bfloat16")


def find_norm_bias(name: str, source: StoredTensors) -> str | None:
    """The bias of the norm of this weight, unless it is zeros or not there.

    Raises:
        CheckpointError: it is not finite, or two names have different ones.
    """
    stem = name.removesuffix("weight")
    names = [bias for bias in (f"{stem}bias", f"{stem}module.bias") if bias in source.entries]
    if not names or any(source.entries[bias].dtype not in _FLOAT_TYPES for bias in names):
        return None  # of another type: told as a tensor that is not zero
    first, *others = (source.array(bias) for bias in names)
    if any(not np.array_equal(first, other) for other in others):
        raise CheckpointError(
            f"{names[1]} is not the same as {names[0]}, which it should repeat: export the model "
            "again."
        )
    if not np.isfinite(first).all():
        raise CheckpointError(f"{names[0]} holds what is no number: quantize the model again.")
    return names[0] if first.any() else None


def list_norm_biases(names: Iterable[str], source: StoredTensors) -> dict[str, str]:
    """What CheckpointFormat.zeros says: the biases of norms, each once."""
    copies = list_norm_copies(names, source)
    return {
        name: "a bias of a norm"
        for name in names
        if _NORM_BIAS.fullmatch(name) and name not in copies
    }


def list_norm_copies(names: Iterable[str], source: StoredTensors) -> dict[str, str]:
    """What CheckpointFormat.surplus says: biases under a second name."""
    pairs = ((name, name.replace(".module.bias", ".bias")) for name in names)
    return {
        copy: f"repeats {name}"
        for copy, name in pairs
        if copy != name
        and {copy, name} <= set(source.entries)
        and np.array_equal(source.array(copy), source.array(name))
    }
