"""The schemes that operators exist for; float weights are quantized to them while loading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mindformers_glm.core import quantized_linear
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantized_linear import FLOAT, StoredScheme
from mindformers_glm.core.sharding import LARGEST_GROUP

GROUP_SIZES = (32, 64, 128)
_SCALE_BYTES = 4  # float32
_ZERO_BYTES = 1  # uint8

# What of the activations has one scale.
GROUP, TOKEN, STATIC, MIXED = "group", "token", "static", "mixed"


@dataclass(frozen=True)
class QuantizationScheme:
    """How one linear layer keeps its weight and takes its products.

    Weights are integers of `weight_bits` times a scale. Activations are rounded to integers of
    `activation_bits` by the kernel, row by row. What a run quantizes itself has neither zero points
    nor another order, and scales of activations by groups; checkpoints may have more.

    Attributes:
        name: what `quantization` calls it.
        group_size: columns of a weight row that share a scale; None: the whole row.
        has_zeros: weights have zero points, of the same groups.
        is_reordered: weights are kept with their columns sorted by group, and activations follow.
        activation_scale: what of the activations has one scale: GROUP, the columns of a group of
            weights (128 where the whole row is one); TOKEN, a row; STATIC, all of them, by a scale
            and an offset of the checkpoint; MIXED, TOKEN for rows of prompts, else STATIC.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group_size: int | None
    has_zeros: bool = False
    is_reordered: bool = False
    activation_scale: str = GROUP

    @property
    def activation_group(self) -> int:
        """Columns of activations that share a scale."""
        return LARGEST_GROUP if self.group_size is None else self.group_size

    def count_bytes(self, num_rows: int, num_columns: int) -> int:
        """Bytes of a weight matrix and its scales, up to the padding to full tiles."""
        groups = 1 if self.group_size is None else -(-num_columns // self.group_size)
        group_bytes = _SCALE_BYTES + self.has_zeros * _ZERO_BYTES
        return num_rows * num_columns * self.weight_bits // 8 + num_rows * groups * group_bytes


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        QuantizationScheme("w8a16", weight_bits=8, activation_bits=16, group_size=None),
        QuantizationScheme("w8a8_dynamic", weight_bits=8, activation_bits=8, group_size=None),
        QuantizationScheme("w4a16", weight_bits=4, activation_bits=16, group_size=128),
        QuantizationScheme("w4a8_dynamic", weight_bits=4, activation_bits=8, group_size=128),
    )
}

# Of activations that a checkpoint has rounded to integers.
_ACTIVATION_SCALES = {
    quantized_linear.STATIC: STATIC,
    quantized_linear.DYNAMIC: TOKEN,
    quantized_linear.MIXED: MIXED,
}


def keep_integers(stored: Sequence[StoredScheme | None]) -> QuantizationScheme | None:
    """The scheme whose operators take the integers of a checkpoint exactly as they are.

    A scale of more columns than an operator's group stands in several of its groups.

    Args:
        stored: of the matrices that one layer stacks; None: it is float.
    Returns:
        None where there is none: the layer runs with the float weights that the integers mean.
    """
    kept = [_keep_integers_of(scheme) for scheme in stored]
    known = [scheme for scheme in kept if scheme is not None]
    kinds = {
        (scheme.weight_bits, scheme.activation_bits, scheme.activation_scale) for scheme in known
    }
    if len(known) < len(kept) or len(kinds) > 1:
        return None
    # Sizes of groups divide one another.
    return min(known, key=lambda scheme: scheme.group_size or 0)


def _keep_integers_of(stored: StoredScheme | None) -> QuantizationScheme | None:
    if stored is None or not stored.is_symmetric or stored.is_reordered or stored.has_float_codes:
        return None
    size = stored.group_size
    if stored.activation != FLOAT:
        if stored.weight_bits != 8 or size is not None:
            return None
        scale = _ACTIVATION_SCALES[stored.activation]
        return QuantizationScheme(stored.name, 8, 8, None, activation_scale=scale)
    if stored.weight_bits == 8:
        return SCHEMES["w8a16"] if size is None else None
    if stored.weight_bits != 4:
        return None
    groups = [group for group in GROUP_SIZES if size is None or size % group == 0]
    return replace(SCHEMES["w4a16"], group_size=max(groups)) if groups else None


def find_obstacle(stored: Mapping[str, Sequence[StoredScheme | None]]) -> str:
    """Why layers of a checkpoint cannot run; empty where they can."""
    names = {
        scheme.name: layer
        for layer, schemes in reversed(list(stored.items()))
        for scheme in schemes
        if scheme is not None and scheme.activation != FLOAT and keep_integers(schemes) is None
    }
    return describe_obstacle(names)


def describe_obstacle(names: Mapping[str, str]) -> str:
    """Why layers with integer activations cannot run; empty where there are none.

    Args:
        names: of their schemes, each with a layer that has it.
    """
    if not names:
        return ""
    found = ", ".join(f"{name} ({layer})" for name, layer in names.items())
    return (
        f"layers are quantized with integer activations, {found}, which this version reads and "
        "does not run: use a weight-only checkpoint (W8A16, W4A16), or the float one with "
        "quantization w8a8_dynamic"
    )


def read_scheme(name: str | None, group_size: int | None) -> QuantizationScheme | None:
    """The scheme that the settings `quantization` and `quantization_group_size` ask for.

    Returns:
        None where weights stay as they are.
    Raises:
        ConfigError: there is no such scheme or group size, or the scheme has no groups.
    """
    if name is not None and (not isinstance(name, str) or name not in SCHEMES):
        raise ConfigError(f"quantization must be one of {', '.join(SCHEMES)}, got {name!r}.")
    scheme = None if name is None else SCHEMES[name]
    if group_size is None:
        return scheme
    if scheme is None or scheme.group_size is None:
        grouped = ", ".join(other.name for other in SCHEMES.values() if other.group_size)
        raise ConfigError(
            f"quantization_group_size={group_size} goes with quantization {grouped} only, and "
            f"quantization is {name or 'not set'}: leave quantization_group_size out."
        )
    if type(group_size) is not int or group_size not in GROUP_SIZES:  # not True, not 32.0
        raise ConfigError(
            f"quantization_group_size must be one of {', '.join(map(str, GROUP_SIZES))}, "
            f"got {group_size!r}."
        )
    return replace(scheme, group_size=group_size)
