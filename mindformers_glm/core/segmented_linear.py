"""A matrix whose columns a tool has quantized in parts, one for each rank of a split network.

Each part is a layer of its own with its own scales, and its own scale and offset of the inputs: so
the product is the sum of the parts' products. A rank may have one part, several, or some of one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mindformers_glm.core.quantized_linear import (
    QuantizedLinear,
    QuantizedRows,
    StaticActivation,
    StoredScheme,
    TensorSpec,
)


@dataclass(frozen=True)
class SegmentedLinear:
    """Parts side by side, in the order of their columns; a QuantizedLinear itself."""

    parts: tuple[QuantizedLinear, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """See QuantizedLinear."""
        return self.parts[0].shape[0], sum(part.shape[1] for part in self.parts)

    @property
    def scheme(self) -> StoredScheme | None:
        """See QuantizedLinear; parts are quantized alike, or are all float."""
        first = self.parts[0].scheme
        if first is None:
            return None
        schemes = [part.scheme for part in self.parts]
        widths = [part.shape[1] for part in self.parts]
        return replace(
            first,
            is_symmetric=all(scheme is not None and scheme.is_symmetric for scheme in schemes),
            # So many columns at least share their scales, from a multiple of that on.
            group_size=math.gcd(first.group_size or 0, *widths),
            num_segments=len(self.parts),
        )

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear."""
        return {name: spec for part in self.parts for name, spec in part.tensors.items()}

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear; each part's groups follow those of the part before."""
        found = [part.read(stored, rows, taken) for part, _, taken in self._parts_of(columns)]
        offsets = np.cumsum([0, *(part.scales.shape[1] for part in found)])
        zeros = None
        if any(part.zeros is not None for part in found):
            zeros = np.concatenate(
                [np.zeros_like(p.scales) if p.zeros is None else p.zeros for p in found], axis=1
            )
        return QuantizedRows(
            np.concatenate([part.codes for part in found], axis=1),
            np.concatenate([part.scales for part in found], axis=1),
            zeros,
            np.concatenate(
                [part.groups + offset for part, offset in zip(found, offsets, strict=False)]
            ),
        )

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear; of one that has several there is none: see `read_activations`."""
        assert self.scheme is None or len(self.parts) == 1, "each part has an activation of its own"
        return self.parts[0].read_activation(stored, rows)

    def read_activations(
        self, stored: Mapping[str, np.ndarray], rows: range, columns: range
    ) -> list[tuple[range, StaticActivation | None]]:
        """How activations enter, by consecutive columns, counted from the first one asked for.

        Of those who share a part's columns, the one with its first column adds its quant_bias: the
        others have zeros.
        """
        found: list[tuple[range, StaticActivation | None]] = []
        for part, begin, taken in self._parts_of(columns):
            activation = part.read_activation(stored, rows)
            if activation is not None and taken.start > 0:
                zeros = np.zeros_like(activation.quant_bias)
                activation = replace(activation, quant_bias=zeros)
            found.append((range(begin, begin + len(taken)), activation))
        return found

    def has_bias(self, stored: Mapping[str, np.ndarray], rows: range) -> bool:
        """Whether a quant_bias is more than the sum of its row's integers times the offset."""
        for part in self.parts:
            activation = part.read_activation(stored, rows)
            if activation is None:
                continue
            codes = part.read(stored, rows, range(part.shape[1])).codes
            correction = activation.input_offset * codes.sum(axis=1, dtype=np.int32)
            if (np.abs(activation.quant_bias + correction) > 1).any():
                return True
        return False

    def _parts_of(self, columns: range) -> Iterator[tuple[QuantizedLinear, int, range]]:
        """(part, where it begins among `columns`, its own columns) for each that has some."""
        start = 0
        for part in self.parts:
            end = start + part.shape[1]
            first, last = max(columns.start, start), min(columns.stop, end)
            if first < last:
                yield part, first - columns.start, range(first - start, last - start)
            start = end


@dataclass(frozen=True)
class FloatPart:
    """Some columns of a matrix that is float, in a tensor of their own; a QuantizedLinear."""

    name: str
    shape: tuple[int, int]
    dtypes: tuple[str, ...]
    scheme: StoredScheme | None = None

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """See QuantizedLinear."""
        return {self.name: TensorSpec(self.shape, self.dtypes)}

    def read(self, stored: Mapping[str, np.ndarray], rows: range, columns: range) -> QuantizedRows:
        """See QuantizedLinear; the numbers themselves, in steps of one."""
        taken = stored[self.name][rows.start : rows.stop, columns.start : columns.stop]
        ones = np.ones((len(rows), 1), np.float32)
        groups = np.zeros(len(columns), np.intp)
        return QuantizedRows(taken.astype(np.float32), ones, None, groups)

    def read_activation(
        self, stored: Mapping[str, np.ndarray], rows: range
    ) -> StaticActivation | None:
        """See QuantizedLinear."""
        return None
