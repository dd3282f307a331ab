"""One decoder layer rounded while it is run: what each linear is given decides what becomes of it.

It is the `multiply` of float_layers.py. The next linear of the layer sees what this one makes once
weight and activations are rounded, as the device will compute it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import FLOAT, MIXED, STATIC
from mindformers_glm.quantizer.float_layers import (
    FloatNetwork,
    Product,
    Tensors,
    add_bias,
    join_columns,
)
from mindformers_glm.quantizer.linear_input import LinearInput
from mindformers_glm.quantizer.observers import (
    ObservedRange,
    choose_method,
    observe,
    round_static,
    round_tokens,
)
from mindformers_glm.quantizer.output_error import (
    OUTPUTS,
    OutputError,
    measure_error,
    measure_weight_error,
    spread_rows,
)
from mindformers_glm.quantizer.range_search import search_range
from mindformers_glm.quantizer.rank_parts import (
    ROW_PARALLEL,
    ExchangeObserver,
    add_floats,
    cut_columns,
    join_parts,
)
from mindformers_glm.quantizer.recipe import SEARCHED, Recipe
from mindformers_glm.quantizer.result import ExchangeScales, LayerResult, QuantizedModule
from mindformers_glm.quantizer.rounding import round_module


class LayerRounding:
    """What becomes of a layer.

    Args:
        number: of the layer.
        tensors: float32, by their names within the layer.
    """

    def __init__(
        self, network: FloatNetwork, recipe: Recipe, number: int, tensors: Tensors
    ) -> None:
        self._network, self._recipe, self._tensors = network, recipe, tensors
        self._number, self._prefix = number, network.names.layer_prefix(number)
        self._modules: list[QuantizedModule] = []
        self.exchange_scales: dict[str, ExchangeScales] = {}

    def multiply(self, parameter: str, x: np.ndarray) -> Product:
        """See Multiply in float_layers.py."""
        modules = self._network.names.modules[parameter]
        if not np.isfinite(x).all():
            raise CheckpointError(
                f"The input of {self._prefix}{modules[0]} has values that are infinite or no "
                "numbers on the calibration samples: the checkpoint's weights are broken."
            )
        rounded = [self._prefix + name not in self._recipe.disable_names for name in modules]
        if self._recipe.num_ranks > 1 and parameter in ROW_PARALLEL:
            return self._multiply_in_parts(modules[0], x, rounded[0])
        given, observed = LinearInput(x, self._network.sample_rows), None
        if any(rounded) and self._recipe.activation in (STATIC, MIXED):
            weights = [
                self._tensors[f"{name}.weight"]
                for name, is_rounded in zip(modules, rounded, strict=True)
                if is_rounded
            ]
            observed = _observe(self._network, self._recipe, x, weights)
        products = [
            self._round(name, given, observed) if is_rounded else self._keep(name, x)
            for name, is_rounded in zip(modules, rounded, strict=True)
        ]

        return lambda rows: join_columns([product(rows) for product in products])

    def round_without_inputs(self) -> None:
        """All its linears, where nothing is calibrated."""
        for parameter, modules in self._network.names.modules.items():
            for name in modules:
                if self._prefix + name not in self._recipe.disable_names:
                    is_split = self._recipe.num_ranks > 1 and parameter in ROW_PARALLEL
                    module = (
                        self._round_parts(name) if is_split else self._round_one(name, None, None)
                    )
                    weight = self._tensors[f"{name}.weight"]
                    error = measure_weight_error(weight, module.rows)
                    self._modules.append(replace(module, error=error))

    def _round_parts(self, name: str) -> QuantizedModule:
        weight = self._tensors[f"{name}.weight"]
        recipe = self._recipe.for_module(self._prefix + name)
        cuts = cut_columns(weight.shape[1], recipe.num_ranks)
        parts = [
            round_module(name, np.ascontiguousarray(weight[:, cut]), None, recipe) for cut in cuts
        ]
        return join_parts(self._prefix + name, parts)

    @property
    def modules(self) -> tuple[QuantizedModule, ...]:
        """Those that are rounded."""
        return tuple(self._modules)

    @classmethod
    def round_output(
        cls,
        network: FloatNetwork,
        recipe: Recipe,
        name: str,
        weight: np.ndarray,
        x: np.ndarray | None,
    ) -> LayerResult:
        """The output layer, where it is quantized.

        Args:
            x: its input; None: nothing is calibrated.
        """
        given, static = None, None
        if x is not None:
            given = LinearInput(x, network.sample_rows)
            if recipe.activation in (STATIC, MIXED):
                static = _observe(network, recipe, x, [weight]).whole
        module = round_module(name, weight, None, recipe, given, static)
        error = measure_weight_error(weight, module.rows)
        return LayerResult((replace(module, error=error),), {})

    def _round(self, name: str, given: LinearInput, observed: ObservedRange | None) -> Product:
        module = self._round_one(name, given, observed)
        product = self._product_of(module, given, observed)
        error = self._measure(self._keep(name, given.x), product, len(given.x))
        self._modules.append(replace(module, error=error))
        return product

    def _multiply_in_parts(self, name: str, x: np.ndarray, is_rounded: bool) -> Product:
        """Of a linear whose columns are split for ranks: each has ranges of its own."""
        recipe, sample_rows = self._recipe, self._network.sample_rows
        method = choose_method(x, sample_rows, recipe.act_method)
        recipe = replace(recipe, act_method=method).for_module(self._prefix + name)
        weight, everything = self._tensors[f"{name}.weight"], slice(0, len(x))
        outputs: list[np.ndarray] = []
        parts: list[QuantizedModule] = []
        for columns in cut_columns(x.shape[1], recipe.num_ranks):
            given = LinearInput(np.ascontiguousarray(x[:, columns]), sample_rows)
            own = np.ascontiguousarray(weight[:, columns])
            if is_rounded:
                has_range = recipe.activation in (STATIC, MIXED)
                observed = None
                if has_range:
                    observed = _observe(self._network, recipe, given.x, [own])
                static = None if observed is None else observed.whole
                parts.append(round_module(name, own, None, recipe, given, static))
                outputs.append(self._product_of(parts[-1], given, observed)(everything))
            else:
                outputs.append(self._network.operators.matrix(own).multiply(given.x))
        total = self._add_up(name, outputs)
        if parts:
            error = self._measure(self._keep(name, x), lambda rows: total[rows], len(x))
            module = join_parts(self._prefix + name, parts)
            self._modules.append(replace(module, error=error))
        return lambda rows: total[rows]

    def _add_up(self, name: str, outputs: list[np.ndarray]) -> np.ndarray:
        """What the ranks have exchanged: floats, but for the tool's sums of int8."""
        total = add_floats(outputs)
        if self._recipe.has_exchange_scales:
            observer = ExchangeObserver(self._network.sample_rows)
            rounded = observer.add_up(outputs)
            self.exchange_scales[self._prefix + name] = observer.scales
            return rounded if self._recipe.is_msmodelslim else total
        return total

    def _product_of(
        self, module: QuantizedModule, given: LinearInput, observed: ObservedRange | None
    ) -> Product:
        """What a device computes of it."""
        weight, operators = module.rows, self._network.operators
        has_integers = self._recipe.activation != FLOAT and weight.scales.shape[1] == 1
        if has_integers and not self._recipe.is_msmodelslim:
            # As a device does it: integers are multiplied, then the scales. The tool multiplies
            # floats, and has other last bits.
            codes, row_scales = operators.integer_matrix(weight.codes), weight.scales[:, 0]

            def multiply_integers(rows: slice) -> np.ndarray:
                x, scales = self._round_activations(given.x[rows], rows, observed)
                y = codes.multiply(x)
                y *= scales
                y *= row_scales
                return add_bias(y, module.bias)

            return multiply_integers
        matrix = operators.matrix(weight.dequantized())

        def multiply_floats(rows: slice) -> np.ndarray:
            x = given.x[rows]
            if self._recipe.activation != FLOAT:
                x, scales = self._round_activations(x, rows, observed)
                x *= scales
            return add_bias(matrix.multiply(x), module.bias)

        return multiply_floats

    def _round_one(
        self, name: str, given: LinearInput | None, observed: ObservedRange | None
    ) -> QuantizedModule:
        return round_module(
            self._prefix + name,
            self._tensors[f"{name}.weight"],
            self._tensors.get(f"{name}.bias"),
            self._recipe.for_module(self._prefix + name),
            given,
            None if observed is None else observed.whole,
        )

    def _measure(self, as_float: Product, as_rounded: Product, num_rows: int) -> OutputError:
        chunks = spread_rows(num_rows)
        return measure_error(OUTPUTS, ((as_float(rows), as_rounded(rows)) for rows in chunks))

    def _keep(self, name: str, x: np.ndarray) -> Product:
        """A module that stays float."""
        matrix = self._network.operators.matrix(self._tensors[f"{name}.weight"])
        bias = self._tensors.get(f"{name}.bias")
        return lambda rows: add_bias(matrix.multiply(x[rows]), bias)

    def _round_activations(
        self, x: np.ndarray, rows: slice, observed: ObservedRange | None
    ) -> tuple[np.ndarray, np.ndarray | np.float32]:
        """Integers, and the scale of all or of each row.

        Calibration samples are prompts: of MIXED their tokens have scales of their own.
        """
        if self._recipe.activation != STATIC:
            return round_tokens(x)
        assert observed is not None
        if not self._recipe.is_msmodelslim:
            found = observed.whole
            return round_static(x, found.scale, found.offset), found.scale
        sample_rows = self._network.sample_rows
        scales = _by_row([found.scale for found in observed.by_sample], sample_rows)
        offsets = _by_row([found.offset for found in observed.by_sample], sample_rows)
        return round_static(x, scales[rows], offsets[rows]), scales[rows]


def _observe(
    network: FloatNetwork, recipe: Recipe, x: np.ndarray, weights: Sequence[np.ndarray]
) -> ObservedRange:
    """The range of an input, which linears of these weights take."""
    if recipe.act_method == SEARCHED:
        found = search_range(x, weights)
        return ObservedRange(found, (found,) * len(network.sample_rows))
    return observe(x, network.sample_rows, recipe.act_method, recipe.is_msmodelslim)


def _by_row(values: Sequence[np.float32], sample_rows: Sequence[slice]) -> np.ndarray:
    """float32 [rows, 1] of a value for each sample."""
    lengths = [rows.stop - rows.start for rows in sample_rows]
    return np.repeat(np.array(values, np.float32), lengths)[:, None]
