"""The schemes that operators exist for; float weights are quantized to them while loading."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantized_linear import FLOAT, StoredScheme
from mindformers_glm.core.sharding import LARGEST_GROUP, ROW_PARALLEL

GROUP_SIZES = (32, 64, 128)
_SCALE_BYTES = 4  # float32
_ZERO_BYTES = 1  # uint8
_ORDER_BYTES = 4  # int32

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
        order_bytes = self.is_reordered * num_columns * _ORDER_BYTES
        codes = num_rows * num_columns * self.weight_bits // 8
        return codes + num_rows * groups * group_bytes + order_bytes


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        QuantizationScheme("w8a16", weight_bits=8, activation_bits=16, group_size=None),
        QuantizationScheme("w8a8_dynamic", weight_bits=8, activation_bits=8, group_size=None),
        QuantizationScheme("w4a16", weight_bits=4, activation_bits=16, group_size=128),
        QuantizationScheme("w4a8_dynamic", weight_bits=4, activation_bits=8, group_size=128),
    )
}


def keep_integers(stored: Sequence[StoredScheme | None]) -> QuantizationScheme | None:
    """The scheme whose operators take the integers of a checkpoint exactly as they are.

    A scale of more columns than an operator's group stands in several of its groups. Matrices that
    are stacked have one order of columns, and zero points all or none: 0 where one has not.

    Args:
        stored: of the matrices that one layer stacks; None: it is float.
    Returns:
        None where there is none: the layer runs with the float weights that the integers mean.
    """
    kept = [_keep_integers_of(scheme) for scheme in stored]
    known = [scheme for scheme in kept if scheme is not None]
    orders = {scheme.column_order for scheme in stored if scheme is not None}
    bits = {scheme.weight_bits for scheme in known}
    if len(known) < len(kept) or len(bits) > 1 or len(orders) > 1:
        return None
    # Sizes of groups divide one another.
    smallest = min(known, key=lambda scheme: scheme.group_size or math.inf)
    return replace(smallest, has_zeros=any(scheme.has_zeros for scheme in known))


def _keep_integers_of(stored: StoredScheme | None) -> QuantizationScheme | None:
    if (
        stored is None
        or stored.weight_bits not in (4, 8)
        or (stored.is_reordered and not stored.column_order)
        or stored.has_far_zeros
        or stored.has_float_codes
        or (stored.activation != FLOAT and not stored.has_rounded_columns)
    ):
        return None
    size = stored.group_size
    groups = [group for group in GROUP_SIZES if size is None or size % group == 0]
    if not groups:
        return None
    has_rows = stored.weight_bits == 8 and size is None
    return replace(
        SCHEMES[f"w{stored.weight_bits}a16"],
        group_size=None if has_rows else max(groups),
        has_zeros=not stored.is_symmetric,
        is_reordered=stored.is_reordered,
    )


def on_ranks(
    scheme: QuantizationScheme | None, layer_name: str, num_ranks: int
) -> QuantizationScheme | None:
    """The scheme of a layer of which each rank has a part.

    Where columns are cut, a rank has some of each group of columns that lie anywhere: such a layer
    is float there.
    """
    is_cut = num_ranks > 1 and layer_name.endswith(ROW_PARALLEL)
    return None if scheme is not None and scheme.is_reordered and is_cut else scheme


def find_obstacle(stored: Mapping[str, Sequence[StoredScheme | None]]) -> str:
    """Why layers of a checkpoint cannot run; empty where they can."""
    names = {
        scheme.name: layer
        for layer, schemes in reversed(list(stored.items()))
        for scheme in schemes
        if scheme is not None and scheme.activation != FLOAT and not scheme.has_rounded_columns
    }
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
