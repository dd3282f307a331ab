"""Linear layers of upstream's network whose weights are int8 in the checkpoint.

| | activations become int8 by | then |
|---|---|---|
| W8A8 | QuantV2: rint(x / input_scale + input_offset) | (x W^T + quant_bias) * deq_scale |
| W8A8_DYNAMIC | DynamicQuantExt: rint(x / s), s = absmax / 127 of a token | x W^T * w_scale * s |
| W8A16 | they stay as they are | x ((W + w_offset) * w_scale)^T, by WeightQuantBatchMatmul |

The types are those of the operators' documentation (CANN: aclnnAscendQuant, aclnnDynamicQuant, the
table of aclnnQuantMatmulV4): QuantV2 multiplies by the reciprocal of input_scale in the type of the
activations; deq_scale is float32 for a product in bfloat16, and for one in float16 the bits of that
float32 in an int64, of which the card reads the upper 19. Of W8A16 (aclnnWeightQuantBatchMatmulV2)
scales and offsets, which are added and not taken off, have the type of the activations; a bias is
added behind it, for CANN wants a float32 one where MindSpore wants bfloat16. Nothing was run on a
card.

Not upstream's own methods (mindformers 1.7.0, quantization/golden_stick): those add a float bias
that quant_bias has already, and take the integer that an int64 deq_scale is for its value.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.parallel_core.inference.tensor_parallel.layers import (
    LinearMethodBase,
    RowParallelLinear,
)
from mindspore import Parameter, Tensor, ops
from mindspore.common.initializer import initializer
from mindspore.common.np_dtype import bfloat16
from mindspore.ops.auto_generate import (
    DynamicQuantExt,
    QuantBatchMatmul,
    QuantV2,
    WeightQuantBatchMatmul,
)

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import StaticInput
from mindformers_glm.weights.quantized_view import QuantizedView

# NumPy's types of what a Parameter holds.
NUMPY_DTYPES: Mapping[Any, Any] = {
    ms.float32: np.float32,
    ms.float16: np.float16,
    ms.bfloat16: bfloat16,
    ms.int8: np.int8,
    ms.int32: np.int32,
    ms.int64: np.int64,
}


class IntegerMethod(LinearMethodBase):
    """What all schemes share: an int8 weight [out, in] of a rank, and vectors beside it.

    layer: its name, for people.
    """

    takes_zeros = False

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        params_dtype: Any,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make the Parameters of a layer of upstream's, as the rank has them."""
        self._num_rows = sum(output_partition_sizes)
        self._num_columns = input_size_per_partition
        self._dtype = params_dtype
        self.product = self._make_product(params_dtype)
        self.cast, self.reshape, self.add = ops.Cast(), ops.Reshape(), ops.Add()
        # All ranks' results are summed, so one of them brings what is added once.
        self._has_quant_bias = not (
            isinstance(layer, RowParallelLinear) and layer.tp_group.rank > 0
        )
        shapes = {"weight": ((self._num_rows, self._num_columns), ms.int8), **self._vectors()}
        for name, (shape, dtype) in shapes.items():
            zeros = initializer("zeros", shape, dtype)
            layer.insert_param_to_cell(name, Parameter(zeros, name=name, requires_grad=False))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what `create_weights` makes."""
        return ("weight", *self._vectors())

    def read(self, views: Sequence[QuantizedView]) -> dict[str, np.ndarray]:
        """What the Parameters hold, of the pieces of a checkpoint's matrices, to be stacked.

        Raises:
            CheckpointError: zero points, which the first rows did not have.
        """
        codes = np.empty((sum(view.num_rows for view in views), len(views[0].columns)), np.int8)
        scales, zeros = np.empty(len(codes), np.float32), np.zeros(len(codes), np.float32)
        start = 0
        for view in views:
            for first, rows in view.quantized_chunks():
                part = slice(start + first, start + first + len(rows.codes))
                codes[part], scales[part] = rows.codes, rows.scales[:, 0]
                if rows.zeros is None:
                    continue
                zeros[part] = rows.zeros[:, 0]
                if not self.takes_zeros:
                    raise CheckpointError(
                        f"{view.name} has zero points in some rows and none in the first: "
                        "download it again."
                    )
            start += view.num_rows
        return {"weight": codes, **self._read_vectors(views, scales, zeros)}

    def _make_product(self, dtype: Any) -> Any:
        """The operator, of activations [rows, in] and the weight, that gives [rows, out]."""
        return QuantBatchMatmul(transpose_x1=False, transpose_x2=True, dtype=dtype)

    @abstractmethod
    def _vectors(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and type of the Parameters beside the weight."""

    @abstractmethod
    def _read_vectors(
        self, views: Sequence[QuantizedView], scales: np.ndarray, zeros: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What those hold; scales and zero points are of the rows, float32."""

    def _as_rows(self, layer: Any, x: Tensor) -> Tensor:
        return self.reshape(self.cast(x, layer.compute_dtype), (-1, self._num_columns))

    def _shaped_as(self, x: Tensor, output: Tensor) -> Tensor:
        return self.cast(self.reshape(output, (*x.shape[:-1], self._num_rows)), x.dtype)


class StaticMethod(IntegerMethod):
    """W8A8: one scale and offset of the checkpoint for all activations."""

    def __init__(self, layer: str, static_input: StaticInput) -> None:
        super().__init__(layer)
        self.static_input = static_input
        self.contains_bias = static_input.contains_bias
        self.quantize = QuantV2()

    def apply(self, layer: Any, x: Tensor, weight: Tensor, bias: Parameter | None = None) -> Tensor:
        """See LinearMethodBase; a float bias is added only where quant_bias lacks it."""
        codes = self.quantize(
            self._as_rows(layer, x), layer.input_scale, layer.input_offset, False, "ROUND", ms.int8
        )
        output = self.product(codes, weight, layer.deq_scale, None, layer.quant_bias, None)
        if bias is not None and not self.contains_bias:
            output = self.add(output, bias)
        return self._shaped_as(x, output)

    def _vectors(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        deq_dtype = ms.int64 if self._dtype == ms.float16 else ms.float32
        return {
            "input_scale": ((1,), self._dtype),
            "input_offset": ((1,), self._dtype),
            "deq_scale": ((self._num_rows,), deq_dtype),
            "quant_bias": ((self._num_rows,), ms.int32),
        }

    def _read_vectors(
        self, views: Sequence[QuantizedView], scales: np.ndarray, zeros: np.ndarray
    ) -> dict[str, np.ndarray]:
        schemes = [view.linear.scheme for view in views]
        if any(scheme is None or scheme.static_input != self.static_input for scheme in schemes):
            raise UnsupportedError(
                f"{self.layer} takes its activations otherwise than the checkpoint that the "
                "network was built for: load this one into a network of its own."
            )
        found = [view.read_activation() for view in views]
        parts = [activation for activation in found if activation is not None]
        deq_scale = np.concatenate([part.deq_scale for part in parts]).astype(np.float32)
        if self._dtype == ms.float16:
            deq_scale = deq_scale.view(np.int32).astype(np.int64)
        quant_bias = np.concatenate([part.quant_bias for part in parts]).astype(np.int32)
        numpy_dtype = NUMPY_DTYPES[self._dtype]
        reciprocal = 1 / np.array([self.static_input.scale], np.float32)
        return {
            "input_scale": reciprocal.astype(numpy_dtype),
            "input_offset": np.array([self.static_input.offset], np.float32).astype(numpy_dtype),
            "deq_scale": deq_scale,
            "quant_bias": quant_bias if self._has_quant_bias else np.zeros_like(quant_bias),
        }


class DynamicMethod(IntegerMethod):
    """W8A8_DYNAMIC: a scale for each token, found on the way."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.quantize = DynamicQuantExt()

    def apply(self, layer: Any, x: Tensor, weight: Tensor, bias: Parameter | None = None) -> Tensor:
        """See LinearMethodBase."""
        codes, token_scale = self.quantize(self._as_rows(layer, x), None)
        output = self.product(codes, weight, layer.w_scale, None, None, token_scale)
        if bias is not None:
            output = self.add(output, bias)
        return self._shaped_as(x, output)

    def _vectors(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"w_scale": ((self._num_rows,), ms.float32)}

    def _read_vectors(
        self, views: Sequence[QuantizedView], scales: np.ndarray, zeros: np.ndarray
    ) -> dict[str, np.ndarray]:
        return {"w_scale": scales}


class WeightOnlyMethod(IntegerMethod):
    """W8A16: the operator makes a float weight of the integers while it multiplies."""

    def __init__(self, layer: str, takes_zeros: bool) -> None:
        super().__init__(layer)
        self.takes_zeros = takes_zeros

    def apply(self, layer: Any, x: Tensor, weight: Tensor, bias: Parameter | None = None) -> Tensor:
        """See LinearMethodBase."""
        offset = layer.w_offset if self.takes_zeros else None
        rows = self._as_rows(layer, x)
        output = self.product(rows, weight, layer.w_scale, offset, None, None, None)
        if bias is not None:
            output = self.add(output, bias)
        return self._shaped_as(x, output)

    def _make_product(self, dtype: Any) -> Any:
        return WeightQuantBatchMatmul(
            transpose_x=False, transpose_weight=True, antiquant_group_size=0
        )

    def _vectors(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        shape = ((self._num_rows,), self._dtype)
        return {"w_scale": shape} | ({"w_offset": shape} if self.takes_zeros else {})

    def _read_vectors(
        self, views: Sequence[QuantizedView], scales: np.ndarray, zeros: np.ndarray
    ) -> dict[str, np.ndarray]:
        numpy_dtype = NUMPY_DTYPES[self._dtype]
        with np.errstate(over="ignore"):
            held = scales.astype(numpy_dtype)
        found = held.astype(np.float32)
        lost = (found == 0) | np.isinf(found)
        if lost.any():
            raise UnsupportedError(
                f"{self.layer} has a scale of {scales[lost][0]:.3g}, which {np.dtype(numpy_dtype)} "
                "does not hold: set params_dtype and compute_dtype to bfloat16."
            )
        offsets = {"w_offset": (-zeros).astype(numpy_dtype)} if self.takes_zeros else {}
        return {"w_scale": held, **offsets}


def check_static_input(layer: str, static_input: StaticInput, dtype: str) -> None:
    """Refuse what QuantV2 cannot be given in the type of activations.

    Raises:
        UnsupportedError: names it.
    """
    # bfloat16 has float32's range.
    numpy_dtype = np.dtype("float16" if dtype == "float16" else "float32")
    with np.errstate(over="ignore"):
        held = (1 / np.array([static_input.scale], np.float32)).astype(numpy_dtype)
    if not 0 < held[0] < np.inf:
        raise UnsupportedError(
            f"{layer} has the input_scale {static_input.scale:.3g}, whose reciprocal {dtype} does "
            "not hold: set params_dtype and compute_dtype to bfloat16."
        )
