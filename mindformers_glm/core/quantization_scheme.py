"""The schemes that operators exist for; float weights are quantized to them while loading."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.quantized_linear import DYNAMIC, FLOAT, StoredScheme
from mindformers_glm.core.sharding import LARGEST_GROUP, ROW_PARALLEL

GROUP_SIZES = (32, 64, 128)
_SCALE_BYTES = 4  # float32
_ZERO_BYTES = 1  # uint8
_ORDER_BYTES = 4  # int32
_BIAS_BYTES = 4  # int32

# What of the activations has one scale.
GROUP, TOKEN, STATIC, MIXED = "group", "token", "static", "mixed"
_LABEL_ENDS = {GROUP: "_DYNAMIC", TOKEN: "_DYNAMIC", STATIC: "", MIXED: "_MIX"}


@dataclass(frozen=True)
class QuantizationScheme:
    """How one linear layer keeps its weight and takes its products.

    Weights are integers of `weight_bits` times a scale. Activations are rounded to integers of
    `activation_bits` by the kernel, row by row; where these are 32, they stay float32. What a run
    quantizes itself has neither zero points nor another order, and scales of activations by groups;
    checkpoints may have more.

    Attributes:
        name: what `quantization` calls it; of a checkpoint's, what its operators are called.
        group_size: columns of a weight row that share a scale; None: the whole row.
        has_zeros: weights have zero points, of the same groups.
        is_reordered: weights are kept with their columns sorted by group, and activations follow.
        activation_scale: what of the activations has one scale: GROUP, the columns of a group of
            weights (128 where the whole row is one); TOKEN, a row; STATIC, all of them, by a scale
            and an offset of the checkpoint; MIXED, TOKEN for rows of prompts, else STATIC.
        has_folded_bias: of STATIC and MIXED: the layer's bias is in their integer bias already.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group_size: int | None
    has_zeros: bool = False
    is_reordered: bool = False
    activation_scale: str = GROUP
    has_folded_bias: bool = False

    @property
    def label(self) -> str:
        """As tools call it: "W8A8_MIX", "W4A16, groups of 128, asymmetric"."""
        has_integers = self.activation_bits == 8
        end = f"A8{_LABEL_ENDS[self.activation_scale]}" if has_integers else "A16"
        details = [
            f"W{self.weight_bits}{end}",
            f"groups of {self.group_size}" if self.group_size else "",
            "asymmetric" if self.has_zeros else "",
            "columns reordered" if self.is_reordered else "",
        ]
        return ", ".join(filter(None, details))

    @property
    def has_given_scale(self) -> bool:
        """Whether activations of some rows have the scale of the checkpoint."""
        return self.activation_scale in (STATIC, MIXED)

    @property
    def activation_group(self) -> int:
        """Columns that stay together where ranks share them: those of a scale of weights.

        And of activations, where these have scales of groups. Of rows' scales ranks tell each
        other on the CPU.
        """
        if self.group_size is not None:
            return self.group_size
        return LARGEST_GROUP if self.activation_scale == GROUP else 1

    def count_bytes(self, num_rows: int, num_columns: int) -> int:
        """Bytes of a weight matrix and its scales, up to the padding to full tiles."""
        groups = 1 if self.group_size is None else -(-num_columns // self.group_size)
        group_bytes = _SCALE_BYTES + self.has_zeros * _ZERO_BYTES
        order_bytes = self.is_reordered * num_columns * _ORDER_BYTES
        codes = num_rows * num_columns * self.weight_bits // 8
        return codes + num_rows * groups * group_bytes + order_bytes + self._given_bytes(num_rows)

    def _given_bytes(self, num_rows: int) -> int:
        """What a given scale of activations adds: deq_scale, quant_bias, the scale and offset."""
        if not self.has_given_scale:
            return 0
        # STATIC has deq_scale in place of the weights' scales.
        per_row = _SCALE_BYTES * (self.activation_scale == MIXED) + _BIAS_BYTES
        return num_rows * per_row + 2 * _SCALE_BYTES


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
    are stacked have one order of columns, and zero points all or none: 0 where one has not. They
    multiply the same activations, which are rounded one way.

    Args:
        stored: of the matrices that one layer stacks; None: it is float.
    Returns:
        None where there is none: the layer runs with the float weights that the integers mean.
    """
    kept = [_keep_integers_of(scheme) for scheme in stored]
    known = [scheme for scheme in kept if scheme is not None]
    given = [scheme for scheme in stored if scheme is not None]
    orders = {scheme.column_order for scheme in given}
    inputs = {scheme.static_input for scheme in given}
    kinds = {(scheme.weight_bits, scheme.activation_scale) for scheme in known}
    if len(known) < len(kept) or len(kinds) > 1 or len(orders) > 1 or len(inputs) > 1:
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
        or (stored.num_segments > 1 and stored.activation in (DYNAMIC, MIXED))
    ):
        return None
    size = stored.group_size
    groups = [group for group in GROUP_SIZES if size is None or size % group == 0]
    if not groups:
        return None
    has_rows = stored.weight_bits == 8 and size is None
    group_size = None if has_rows else max(groups)
    if stored.activation != FLOAT and not stored.has_rounded_columns:
        return _keep_activations_of(stored, group_size)
    return replace(
        SCHEMES[f"w{stored.weight_bits}a16"],
        group_size=group_size,
        has_zeros=not stored.is_symmetric,
        is_reordered=stored.is_reordered,
    )


def _keep_activations_of(stored: StoredScheme, group_size: int | None) -> QuantizationScheme | None:
    """As a card takes products of integers: of symmetric weights, int4 beside tokens alone."""
    scale = TOKEN if stored.activation == DYNAMIC else stored.activation
    if (
        not stored.is_symmetric
        or stored.is_reordered
        or (stored.weight_bits == 8) != (group_size is None)
        or (stored.weight_bits == 4 and scale != TOKEN)
        or (scale != TOKEN and stored.static_input is None)
    ):
        return None
    return QuantizationScheme(
        f"w{stored.weight_bits}a8_{scale}",
        weight_bits=stored.weight_bits,
        activation_bits=8,
        group_size=group_size,
        activation_scale=scale,
        has_folded_bias=stored.static_input is not None and stored.static_input.contains_bias,
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


def in_precision(
    scheme: QuantizationScheme | None, compute_dtype: str
) -> QuantizationScheme | None:
    """The scheme of a checkpoint's layer in a run: float32 products take activations as they are.

    The weights in memory are the same. Integer activations of a checkpoint stay integers.
    """
    is_rounded = scheme is not None and (scheme.activation_bits, scheme.activation_scale) == (
        16,
        GROUP,
    )
    if scheme is None or compute_dtype != "float32" or not is_rounded:
        return scheme
    return replace(scheme, activation_bits=32)


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
