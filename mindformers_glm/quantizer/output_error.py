"""How far the output of a quantized linear lies from that of the float one, on the same input."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mindformers_glm.core.quantized_linear import QuantizedRows

# What an error is measured on: products with calibration inputs, or the weights where none are run.
OUTPUTS, WEIGHTS = "outputs", "weights"
_CHUNK_ROWS = 128
_MOST_ROWS = 1024
_MOST_SNR_DB = 200.0  # stands for no error at all: JSON has no infinity


@dataclass(frozen=True)
class OutputError:
    """Errors of one linear.

    Attributes:
        measured_on: OUTPUTS or WEIGHTS.
        snr_db: 10 log10 of the float values' energy over that of the difference; at most 200.
        cosine: of the angle between both, all values taken as one vector.
        largest: the largest difference of one value.
        largest_value: the largest magnitude of the float values, to compare that with.
    """

    measured_on: str
    snr_db: float
    cosine: float
    largest: float
    largest_value: float


def spread_rows(num_rows: int) -> list[slice]:
    """Chunks of rows to measure on: all of them, or about a thousand at equal distances."""
    num_chunks = -(-num_rows // _CHUNK_ROWS)
    num_taken = min(num_chunks, _MOST_ROWS // _CHUNK_ROWS)
    begins = [place * num_chunks // num_taken * _CHUNK_ROWS for place in range(num_taken)]
    return [slice(begin, min(begin + _CHUNK_ROWS, num_rows)) for begin in begins]


def measure_weight_error(weight: np.ndarray, rows: QuantizedRows) -> OutputError:
    """The error of the weight itself, which is that of outputs for inputs without any pattern."""
    chunks = [slice(begin, begin + _CHUNK_ROWS) for begin in range(0, len(weight), _CHUNK_ROWS)]
    pairs = ((weight[chunk], _cut(rows, chunk).dequantized()) for chunk in chunks)
    return measure_error(WEIGHTS, pairs)


def measure_error(measured_on: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> OutputError:
    """Compare float values with quantized ones, some rows at a time.

    Args:
        pairs: float32 (float values, quantized values) of one shape.
    """
    signal = rounded = product = noise = largest = largest_value = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # whoever reads the outputs refuses them
        for values, others in pairs:
            difference = others - values
            signal += float(np.vdot(values, values))
            rounded += float(np.vdot(others, others))
            product += float(np.vdot(values, others))
            noise += float(np.vdot(difference, difference))
            largest = max(largest, float(np.abs(difference).max(initial=0)))
            largest_value = max(largest_value, float(np.abs(values).max(initial=0)))
    if not math.isfinite(signal + rounded + noise):
        most = float(np.finfo(np.float32).max)
        return OutputError(measured_on, -_MOST_SNR_DB, 0.0, most, most)
    lengths = math.sqrt(signal * rounded)
    return OutputError(
        measured_on=measured_on,
        snr_db=_to_decibel(signal, noise),
        cosine=min(product / lengths, 1.0) if lengths else float(noise == 0),
        largest=largest,
        largest_value=largest_value,
    )


def _to_decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return _MOST_SNR_DB
    if signal == 0:
        return -_MOST_SNR_DB
    return max(-_MOST_SNR_DB, min(10 * math.log10(signal / noise), _MOST_SNR_DB))


def _cut(rows: QuantizedRows, chunk: slice) -> QuantizedRows:
    zeros = None if rows.zeros is None else rows.zeros[chunk]
    return QuantizedRows(rows.codes[chunk], rows.scales[chunk], zeros, rows.groups)
