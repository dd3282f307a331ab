"""The two terms of a static W8A8 product that follow from its scales: quant_bias and deq_scale."""

from dataclasses import dataclass

import numpy as np

from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.result import StaticRange


@dataclass(frozen=True)
class StaticTerms:
    """y = (x_int W_int^T + quant_bias) * deq_scale; the float bias is in it.

    quant_bias: int32 [out]; deq_scale: float32 [out].
    """

    quant_bias: np.ndarray
    deq_scale: np.ndarray

    def as_stored(self, has_int64: bool) -> np.ndarray:
        """deq_scale as it is, or its bits in the lower half of int64."""
        if not has_int64:
            return self.deq_scale
        return np.ascontiguousarray(self.deq_scale).view(np.int32).astype(np.int64)


def compute_static_terms(
    rows: QuantizedRows, static: StaticRange, bias: np.ndarray | None
) -> StaticTerms:
    """In float32, as msModelSlim 26.1.0 does: rint(bias / deq_scale - offset * sums of codes)."""
    deq_scale = np.float32(static.scale) * rows.scales[:, 0].astype(np.float32)
    sums = rows.codes.sum(axis=1, dtype=np.int32).astype(np.float32)
    own = np.float32(0) if bias is None else bias.astype(np.float32) / deq_scale
    quant_bias = np.rint(own - np.float32(static.offset) * sums)
    return StaticTerms(quant_bias.astype(np.int32), deq_scale)
