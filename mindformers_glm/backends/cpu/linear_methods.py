"""How a linear layer keeps its weight and multiplies by it.

The layers ask `choose_linear_method` when they are built and know no formats themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from mindspore import Parameter

from mindformers_glm.backends.cpu import tile_packing
from mindformers_glm.backends.cpu.allocation import allocate
from mindformers_glm.backends.cpu.given_scales import GivenScales
from mindformers_glm.backends.cpu.packed_integers import PackedIntegers
from mindformers_glm.backends.cpu.parameters import LoadInto, as_parameter
from mindformers_glm.backends.cpu.row_chunks import row_chunks
from mindformers_glm.backends.cpu.trace import Operator
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.quantization_scheme import GROUP, MIXED, QuantizationScheme

# What an operator is called by that rounds activations to a type before each product.
_SUFFIXES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True)
class LinearWeight:
    """The Parameters of one matrix by their names, in the operator's order, and their loading."""

    parameters: dict[str, Parameter]
    targets: dict[str, LoadInto]


class LinearMethod(Protocol):
    """One format: what it keeps in memory, and the three operators on it."""

    def create_weight(
        self, num_rows: int, num_columns: int, is_gated: bool = False
    ) -> LinearWeight:
        """Allocate a matrix [num_rows, num_columns].

        Args:
            is_gated: there are two, num_rows gate rows and then as many up rows; their tiles
                alternate, so that one pass makes both factors of an output.
        """
        ...

    def linear(self, width: int, has_row_maxima: bool = False) -> Operator:
        """The operator on (x [, row_maxima], *parameters, num_rows).

        Args:
            has_row_maxima: x is a part of rows; of a method that has scales of rows.
        """
        ...

    @property
    def can_split_activations(self) -> bool:
        """Whether `norm_linear` takes the number of last outputs that want more digits."""
        ...

    @property
    def needs_prompt_rows(self) -> bool:
        """Whether operators take, before num_rows, which rows are of prompts."""
        ...

    @property
    def adds_bias(self) -> bool:
        """Whether `norm_linear` takes the layer's bias; else what is loaded has it already."""
        ...

    def norm_linear(self, width: int) -> Operator:
        """The operator on (x, norm_weight, eps, *parameters, num_rows [, num_split] [, bias])."""
        ...

    def norm_gated_linear(self, width: int) -> Operator:
        """The operator on (x, norm_weight, eps, *parameters of a gated matrix, num_rows)."""
        ...


def choose_linear_method(settings: RunnerSettings, layer_name: str) -> LinearMethod:
    """The format of one layer, which may differ from that of others."""
    scheme = settings.scheme_of(layer_name)
    if scheme is None:
        return FloatMethod(settings.params_dtype, settings.compute_dtype)
    if settings.stored_schemes is None:
        return QuantizedMethod(scheme)
    return GivenScaleMethod(scheme) if scheme.has_given_scale else StoredIntegersMethod(scheme)


@dataclass(frozen=True)
class FloatMethod:
    """Weights in `params_dtype`, activations rounded to `compute_dtype` before each product."""

    params_dtype: str
    compute_dtype: str
    needs_prompt_rows = False
    adds_bias = True

    def create_weight(
        self, num_rows: int, num_columns: int, is_gated: bool = False
    ) -> LinearWeight:
        """See LinearMethod."""
        dtype = self.params_dtype
        tiles = allocate(tile_packing.packed_shape(num_rows, num_columns, is_gated), dtype)

        def load(views: Sequence[Any]) -> None:
            for chunk in row_chunks(views, is_gated):
                tile_packing.pack_rows(
                    tiles, chunk.rows, chunk.dtype, dtype, chunk.row_offset, chunk.gated_half
                )

        return LinearWeight(
            {"weight": as_parameter(tiles, dtype, "weight")}, {"weight": LoadInto(load)}
        )

    @property
    def can_split_activations(self) -> bool:
        """See LinearMethod."""
        return self.compute_dtype == "bfloat16"

    def linear(self, width: int, has_row_maxima: bool = False) -> Operator:
        """See LinearMethod."""
        assert not has_row_maxima, "floats have no scales"
        return Operator(f"glm_linear_{_SUFFIXES[self.compute_dtype]}", width)

    def norm_linear(self, width: int) -> Operator:
        """See LinearMethod."""
        # Activations as the sum of two bfloat16 values: twice the products, 16 digits instead of 8.
        suffix = "bf16x2" if self.can_split_activations else _SUFFIXES[self.compute_dtype]
        return Operator(f"glm_norm_linear_{suffix}", width)

    def norm_gated_linear(self, width: int) -> Operator:
        """See LinearMethod."""
        return Operator(f"glm_norm_gated_linear_{_SUFFIXES[self.compute_dtype]}", width)


@dataclass(frozen=True)
class QuantizedMethod:
    """Integer weights with scales, quantized while they are loaded; activations by the kernel."""

    scheme: QuantizationScheme
    can_split_activations = False  # they are integers
    needs_prompt_rows = False
    adds_bias = True

    def create_weight(
        self, num_rows: int, num_columns: int, is_gated: bool = False
    ) -> LinearWeight:
        """See LinearMethod; all is filled together with the integers."""
        scheme = self.scheme
        tiles, scales = tile_packing.quantized_shapes(
            num_rows, num_columns, scheme.weight_bits, scheme.group_size or 0, is_gated
        )
        forms = {"weight": (tiles, "uint8"), "weight_scale": (scales, "float32")}
        if scheme.has_zeros:
            forms["weight_zero"] = (scales, "uint8")
        if scheme.is_reordered:
            forms["weight_order"] = ((num_columns,), "int32")
        arrays = {name: allocate(*form) for name, form in forms.items()}
        parameters = {name: as_parameter(arrays[name], forms[name][1], name) for name in forms}
        return LinearWeight(parameters, {"weight": LoadInto(self._make_load(arrays, is_gated))})

    def _make_load(
        self, arrays: Mapping[str, np.ndarray], is_gated: bool
    ) -> Callable[[Sequence[Any]], None]:
        """What fills the arrays, by the names of their Parameters, from views of a checkpoint."""
        tiles, scales = arrays["weight"], arrays["weight_scale"]
        bits, group_size = self.scheme.weight_bits, self.scheme.group_size or 0

        def load(views: Sequence[Any]) -> None:
            # Scales are those of the whole matrix, of which a rank may have some columns.
            widened = [view.widened(self.scheme.activation_group) for view in views]
            for chunk in row_chunks(widened, is_gated):
                tile_packing.quantize_rows(
                    tiles,
                    scales,
                    chunk.rows,
                    chunk.dtype,
                    bits,
                    group_size,
                    chunk.row_offset,
                    chunk.gated_half,
                    row_maxima=chunk.row_maxima() if bits == 8 else None,
                    kept=chunk.view.kept,
                )

        return load

    def linear(self, width: int, has_row_maxima: bool = False) -> Operator:
        """See LinearMethod."""
        return Operator(f"glm_linear_{self._suffix}{'_shared' * has_row_maxima}", width)

    def norm_linear(self, width: int) -> Operator:
        """See LinearMethod."""
        return Operator(f"glm_norm_linear_{self._suffix}", width)

    def norm_gated_linear(self, width: int) -> Operator:
        """See LinearMethod."""
        return Operator(f"glm_norm_gated_linear_{self._suffix}", width)

    @property
    def _suffix(self) -> str:
        scheme = self.scheme
        ends = "_zeros" * scheme.has_zeros + "_ordered" * scheme.is_reordered
        if scheme.activation_scale != GROUP:
            ends += f"_{scheme.activation_scale}"
        return f"w{scheme.weight_bits}a{scheme.activation_bits}{ends}"


@dataclass(frozen=True)
class StoredIntegersMethod(QuantizedMethod):
    """The same operators on the integers and scales of a checkpoint that is quantized already.

    It may have zero points and columns in another order besides, for which there are operators too.
    """

    def _make_load(
        self, arrays: Mapping[str, np.ndarray], is_gated: bool
    ) -> Callable[[Sequence[Any]], None]:
        """See QuantizedMethod; integers and scales are packed as they are stored."""
        packed = PackedIntegers(
            arrays["weight"],
            arrays["weight_scale"],
            self.scheme.weight_bits,
            self.scheme.group_size or 0,
            stride=2 if is_gated else 1,
            zeros=arrays.get("weight_zero"),
            order=arrays.get("weight_order"),
        )

        def load(views: Sequence[Any]) -> None:
            start = 0
            for number, view in enumerate(views):
                wide = view.widened(self.scheme.activation_group)
                for first, rows in wide.quantized_chunks():
                    packed.put(
                        rows,
                        first if is_gated else start + first,
                        half=number if is_gated else 0,
                        kept=wide.kept,
                        name=view.name,
                    )
                start += view.num_rows

        return load


@dataclass(frozen=True)
class GivenScaleMethod(StoredIntegersMethod):
    """Integers beside activations that have one scale and offset of the checkpoint.

    All rows of a step (STATIC), or those that are not of a prompt (MIXED).
    """

    @property
    def needs_prompt_rows(self) -> bool:  # type: ignore[override]
        """See LinearMethod."""
        return self.scheme.activation_scale == MIXED

    @property
    def adds_bias(self) -> bool:  # type: ignore[override]
        """See LinearMethod; rows of a prompt have it added, others not twice."""
        return self.needs_prompt_rows or not self.scheme.has_folded_bias

    def create_weight(
        self, num_rows: int, num_columns: int, is_gated: bool = False
    ) -> LinearWeight:
        """See LinearMethod."""
        integers = super().create_weight(num_rows, num_columns, is_gated)
        scales = integers.parameters["weight_scale"].asnumpy()
        given = GivenScales(
            allocate(scales.shape, "float32"),
            allocate((scales.shape[0], scales.shape[2]), "int32"),
            allocate((2,), "float32"),
            stride=2 if is_gated else 1,
        )
        load_integers = integers.targets["weight"].load

        def load(views: Sequence[Any]) -> None:
            load_integers(views)
            given.put(views)

        kept = dict(integers.parameters)
        if not self.needs_prompt_rows:
            del kept["weight_scale"]  # deq_scale has it
        return LinearWeight(kept | given.as_parameters(), {"weight": LoadInto(load)})
