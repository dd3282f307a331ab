"""What a checkpoint that is quantized already is run as, layer by layer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mindformers_glm.core.quantization_scheme import (
    QuantizationScheme,
    keep_integers,
    on_ranks,
)
from mindformers_glm.core.quantized_linear import StoredScheme


@dataclass(frozen=True)
class StoredSchemes:
    """The schemes of all linear layers, by their Megatron-Core names (weights/rules.py finds them).

    tool: which tool has quantized them, and in which format; None: the checkpoint is float.
    stored: of each matrix that a layer stacks; None: it is float.
    shifted_norms: the layers whose norm has a bias.
    has_kv_scales: whether there are scales of an int8 KV cache.
    """

    tool: str | None = None
    stored: Mapping[str, Sequence[StoredScheme | None]] = field(default_factory=dict)
    shifted_norms: tuple[str, ...] = ()
    has_kv_scales: bool = False

    @property
    def kept(self) -> dict[str, QuantizationScheme | None] | None:
        """The scheme that keeps each layer's integers, None where it runs as float."""
        if self.tool is None:
            return None
        return {name: keep_integers(schemes) for name, schemes in self.stored.items()}

    @property
    def rounded_columns(self) -> tuple[str, ...]:
        """The layers of whose activations each column has a scale and offset."""
        return tuple(
            name
            for name, schemes in self.stored.items()
            if any(scheme is not None and scheme.has_rounded_columns for scheme in schemes)
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many matrices have each scheme, by what people call it; "float" is one."""
        matrices = [scheme for schemes in self.stored.values() for scheme in schemes]
        names = ["float" if scheme is None else scheme.name for scheme in matrices]
        return dict(Counter(names).most_common())

    @property
    def float_layers(self) -> list[str]:
        """The layers that the tool has left float, in part or whole."""
        return [name for name, schemes in self.stored.items() if None in schemes]

    def find_widened(self, num_ranks: int = 1) -> list[str]:
        """The quantized layers that run as float, as no operator takes their integers."""
        return [
            name
            for name, scheme in (self.kept or {}).items()
            if on_ranks(scheme, name, num_ranks) is None and any(self.stored[name])
        ]

    def describe_float(self, num_ranks: int = 1) -> str:
        """A sentence on layers that lose their integers; empty where there are none."""
        lost = self.find_widened(num_ranks)
        if not lost:
            return ""
        names = {scheme.name for layer in lost for scheme in self.stored[layer] if scheme}
        return (
            f"{len(lost)} of {len(self.stored)} linear layers are quantized in a way that has no "
            f"operator here{' on several ranks' * (num_ranks > 1)} "
            f"({'; '.join(sorted(names))}): they run with the same values in "
            "params_dtype, and take its memory"
        )
