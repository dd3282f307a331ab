"""The schemes by which float weights are quantized while they are loaded."""

from dataclasses import dataclass, replace

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.core.sharding import LARGEST_GROUP

GROUP_SIZES = (32, 64, 128)
_SCALE_BYTES = 4  # float32


@dataclass(frozen=True)
class QuantizationScheme:
    """How one linear layer keeps its weight and takes its products.

    Weights are integers of `weight_bits` times a scale, rounded to nearest, without zero points.
    Activations are rounded to integers of `activation_bits` by the kernel, row by row.

    Attributes:
        name: what `quantization` calls it.
        group_size: columns of a weight row that share a scale; None: the whole row.
    """

    name: str
    weight_bits: int
    activation_bits: int
    group_size: int | None

    @property
    def activation_group(self) -> int:
        """Columns of activations that share a scale."""
        return LARGEST_GROUP if self.group_size is None else self.group_size

    def count_bytes(self, num_rows: int, num_columns: int) -> int:
        """Bytes of a weight matrix and its scales, up to the padding to full tiles."""
        groups = 1 if self.group_size is None else -(-num_columns // self.group_size)
        return num_rows * num_columns * self.weight_bits // 8 + num_rows * groups * _SCALE_BYTES


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        QuantizationScheme("w8a16", weight_bits=8, activation_bits=16, group_size=None),
        QuantizationScheme("w8a8_dynamic", weight_bits=8, activation_bits=8, group_size=None),
        QuantizationScheme("w4a16", weight_bits=4, activation_bits=16, group_size=128),
        QuantizationScheme("w4a8_dynamic", weight_bits=4, activation_bits=8, group_size=128),
    )
}


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
