"""Linears whose columns are split, quantized as each of N ranks would have them: tp_list.

    x = [x_0 | x_1], W = [W_0 | W_1]:    y = x_0 W_0^T + x_1 W_1^T

Rank r rounds x_r and W_r by ranges of their own. Cards may exchange what they add up as int8: a
rank's part by a scale of each output, and the sum by another.
Source: msModelSlim 26.1.0 (simulate_tp of its quantizer: the class in Python, and what the closed
function makes of numbers).
"""

from collections.abc import Sequence

import numpy as np

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.result import ExchangeScales, QuantizedModule
from mindformers_glm.weights.tensor_names import FC2, PROJ

ROW_PARALLEL = (PROJ, FC2)  # each is one module in every dialect, without a bias
_LARGEST = np.float32(127)


def cut_columns(num_columns: int, num_ranks: int) -> list[slice]:
    """The columns of each rank, all as many."""
    width = num_columns // num_ranks
    return [slice(begin, begin + width) for begin in range(0, num_columns, width)]


def check_cut(name: str, num_columns: int, num_ranks: int) -> None:
    """Refuse columns that ranks do not divide.

    Raises:
        UnsupportedError: they do not.
    """
    if num_columns % num_ranks:
        raise UnsupportedError(
            f"{name} has {num_columns} columns, which {num_ranks} ranks do not divide: take "
            "another tp_size."
        )


def join_parts(name: str, parts: Sequence[QuantizedModule]) -> QuantizedModule:
    """The whole linear of what the ranks have: a group of columns for each."""
    zeros = [part.rows.zeros for part in parts if part.rows.zeros is not None]
    widths = [part.rows.codes.shape[1] for part in parts]
    rows = QuantizedRows(
        np.concatenate([part.rows.codes for part in parts], axis=1),
        np.concatenate([part.rows.scales for part in parts], axis=1),
        np.concatenate(zeros, axis=1) if zeros else None,
        np.repeat(np.arange(len(parts)), widths),
    )
    first = parts[0]
    return QuantizedModule(name, first.label, first.weight_bits, None, rows, parts=tuple(parts))


class ExchangeObserver:
    """Adds up what ranks have as cards do that exchange int8, and finds the scales for it.

    Args:
        sample_rows: the rows of each calibration sample, whose own ranges it is rounded by.
    """

    def __init__(self, sample_rows: Sequence[slice]) -> None:
        self._sample_rows = sample_rows
        self._of_parts: np.ndarray | None = None
        self._of_sum: np.ndarray | None = None

    @property
    def scales(self) -> ExchangeScales:
        """By the largest magnitudes of all samples."""
        assert self._of_parts is not None
        assert self._of_sum is not None
        return ExchangeScales(self._of_parts / _LARGEST, self._of_sum / _LARGEST)

    def add_up(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The sum of float32 [rows, out] of each rank, rounded."""
        total = np.empty_like(parts[0])
        of_parts, of_sum = [], []
        for rows in self._sample_rows:
            largest = [_largest(part[rows]) for part in parts]
            exchanged = _add([_round(p[rows], m) for p, m in zip(parts, largest, strict=True)])
            of_parts.append(np.stack(largest))
            of_sum.append(_largest(exchanged))
            total[rows] = _round(exchanged, of_sum[-1])
        self._of_parts, self._of_sum = np.max(of_parts, axis=0), np.max(of_sum, axis=0)
        return total


def add_floats(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The sum as ranks have it that exchange floats."""
    return _add([part.copy() for part in parts[:1]] + list(parts[1:]))


def _add(parts: Sequence[np.ndarray]) -> np.ndarray:
    """In the order of the ranks, into the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def _largest(values: np.ndarray) -> np.ndarray:
    """float32 [out]."""
    return np.abs(values).max(axis=0)


def _round(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """To 255 steps from -largest to largest of each column; a column of zeros stays."""
    scales = largest / _LARGEST
    np.copyto(scales, 1, where=largest == 0)
    steps = np.rint(values / scales)
    return np.multiply(steps, scales, out=steps)
