"""GPTQ: weights rounded one column after the other, each making up for the errors before it.

The output's error on the calibration set, for a row of weights with rounding errors e, is e H e^T
with H = X^T X. With H = L L^T it is |e L|^2, and as L is lower triangular, the last column's error
enters once: rounding from the last column to the first, element i of e L is (t_i - q_i) L_ii where

    t_i = w_i + (sum of e_j L_ji over the columns j > i that are rounded already) / L_ii

so q_i is t_i rounded. This is GPTQ (Frantar et al. 2022, arXiv:2210.17323) with the columns turned
round, without its inverse of H: one factorization instead of three steps, the same numbers but for
the last bits; seen so it is Babai's nearest plane method (Chen et al. 2025, arXiv:2507.18553).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import lapack, solve_triangular

from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.products import multiply_transposed
from mindformers_glm.quantizer.weight_grid import WeightGrid

_BLOCK = 128  # columns between two large products
_DAMPING = 0.01  # of the paper's code
# The narrowest ranges that are tried, as shares of the whole: by bits of the weights.
_NARROWEST = {4: 0.3, 8: 0.9}
_ROWS_AT_ONCE = 256  # of a search for clipped ranges, which then stays in the caches


@dataclass(frozen=True)
class GptqOptions:
    """How columns are rounded.

    Attributes:
        has_act_order: those with the largest inputs first; groups are then of columns that are
            rounded one after the other, which a file tells by g_idx.
        has_static_groups: with has_act_order: groups stay of neighbouring columns, and their
            scales are of the weights as they were.
        damping: what is added to the diagonal of H, as a share of its mean (`choose_damping`).
        num_clip_steps: narrower ranges that are tried for each scale; 0: the whole range.
    """

    has_act_order: bool = True
    has_static_groups: bool = False
    damping: float = _DAMPING
    num_clip_steps: int = 16


@dataclass(frozen=True)
class RoundedWeight:
    """A rounded weight, and what it costs.

    Attributes:
        rows: codes int8, scales and zeros float32, groups as QuantizedRows has them.
        error: sum of e H e^T over the rows, H with damping.
        nearest_error: the same of plain rounding to nearest.
    """

    rows: QuantizedRows
    error: float
    nearest_error: float


@dataclass
class _Columns:
    """A matrix column by column, from the one that is rounded last to the first.

    Attributes:
        order: the column of the weight that each is; groups: its group.
        factor: float32 [columns, columns], L.
        weights: float32 [columns, rows]; errors, codes: the same once rounded.
        scales, zeros: float32 [groups, rows].
        row_errors: float64 [rows], |e L|^2.
    """

    order: np.ndarray
    groups: np.ndarray
    factor: np.ndarray
    weights: np.ndarray
    grid: WeightGrid
    num_clip_steps: int
    errors: np.ndarray = field(init=False)
    codes: np.ndarray = field(init=False)
    scales: np.ndarray = field(init=False)
    zeros: np.ndarray = field(init=False)
    row_errors: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        num_columns, num_rows = self.weights.shape
        num_groups = int(self.groups.max()) + 1
        self.errors = np.empty_like(self.weights)
        self.codes = np.empty((num_columns, num_rows), np.int8)
        self.scales = np.empty((num_groups, num_rows), np.float32)
        self.zeros = np.zeros((num_groups, num_rows), np.float32)
        self.row_errors = np.zeros(num_rows)

    def fit_group(self, group: int, columns: np.ndarray | slice, weights: np.ndarray) -> None:
        """Choose the scales of some columns: those of least error, clipped or not."""
        importance = np.square(self.factor.diagonal()[columns])
        scales, zeros = fit_clipped(self.grid, weights, importance, self.num_clip_steps)
        self.scales[group] = scales
        if zeros is not None:
            self.zeros[group] = zeros

    def round_block(self, begin: int, end: int, fits_groups: bool) -> None:
        """Round the columns from end - 1 down to begin; all behind are rounded."""
        factor = self.factor
        due = multiply_transposed(factor[end:, begin:end], self.errors[end:])  # [block, rows]
        if fits_groups:
            # The block as it is best kept unrounded, given the errors so far.
            own = factor[begin:end, begin:end]
            moved = solve_triangular(own, due, trans="T", lower=True, check_finite=False)
            moved += self.weights[begin:end]
            self.fit_group(int(self.groups[begin]), slice(begin, end), moved)
        for column in range(end - 1, begin - 1, -1):
            diagonal = factor[column, column]
            target = factor[column + 1 : end, column] @ self.errors[column + 1 : end]
            target += due[column - begin]
            target /= diagonal
            target += self.weights[column]
            value = self._round(column, target)
            target -= value
            self.row_errors += np.square(target * diagonal)
            np.subtract(self.weights[column], value, out=self.errors[column])

    def _round(self, column: int, target: np.ndarray) -> np.ndarray:
        """Keep the codes of a column, and return what they stand for."""
        group = self.groups[column]
        scales, zeros = self.scales[group], self.zeros[group]
        codes = self.grid.codes(target, scales, None if self.grid.is_symmetric else zeros)
        self.codes[column] = codes
        if not self.grid.is_symmetric:
            codes -= zeros
        codes *= scales
        return codes

    def take_nearest_rows(self) -> float:
        """Round plainly the rows where that leaves less; the sum of plain errors of all rows."""
        plain = _Columns(self.order, self.groups, self.factor, self.weights, self.grid, 0)
        for group in range(len(self.scales)):
            columns = np.flatnonzero(self.groups == group)
            plain.fit_group(group, columns, self.weights[columns])
        for column, weights in enumerate(self.weights):
            np.subtract(weights, plain._round(column, weights), out=plain.errors[column])
        for begin in range(0, len(self.weights), _BLOCK):
            end = begin + _BLOCK
            product = multiply_transposed(self.factor[begin:, begin:end], plain.errors[begin:])
            plain.row_errors += np.square(product, out=product).sum(axis=0)
        better = plain.row_errors < self.row_errors
        for name in ("codes", "scales", "zeros"):
            getattr(self, name)[:, better] = getattr(plain, name)[:, better]
        self.row_errors[better] = plain.row_errors[better]
        return float(plain.row_errors.sum())

    def to_rows(self) -> QuantizedRows:
        """The matrix in the order of its own columns."""
        codes = np.empty(self.codes.shape[::-1], np.int8)
        codes[:, self.order] = self.codes.T
        groups = np.empty_like(self.groups)
        groups[self.order] = self.groups
        zeros = None if self.grid.is_symmetric else np.ascontiguousarray(self.zeros.T)
        return QuantizedRows(codes, np.ascontiguousarray(self.scales.T), zeros, groups)


def round_gptq(
    weight: np.ndarray, hessian: np.ndarray, grid: WeightGrid, options: GptqOptions | None = None
) -> RoundedWeight:
    """Round a linear's weight so that its output changes as little as can be.

    No row is left with a larger error than plain rounding in the same groups would give it.

    Args:
        weight: float32 [rows, columns].
        hessian: float32 or float64 [columns, columns], X^T X of the inputs.
    """
    options = options or GptqOptions()
    num_columns = weight.shape[1]
    size = grid.group_size or num_columns
    first_to_last = np.arange(num_columns)
    if options.has_act_order:
        first_to_last = np.argsort(-hessian.diagonal(), kind="stable")
    groups = grid.groups(num_columns)
    is_static = grid.group_size is None or (options.has_act_order and options.has_static_groups)
    order = first_to_last[::-1]
    columns = _Columns(
        order,
        groups[order] if is_static else groups[::-1].copy(),
        _factorize(hessian, order, options.damping),
        np.ascontiguousarray(weight.T[order], np.float32),
        grid,
        options.num_clip_steps,
    )
    if is_static:
        for group in range(len(columns.scales)):
            members = np.flatnonzero(columns.groups == group)
            columns.fit_group(group, members, columns.weights[members])
    step = _BLOCK if is_static else size
    for first in range(0, num_columns, step):
        end = num_columns - first
        columns.round_block(max(end - step, 0), end, fits_groups=not is_static)
    nearest_error = columns.take_nearest_rows()
    return RoundedWeight(columns.to_rows(), float(columns.row_errors.sum()), nearest_error)


def choose_damping(num_tokens: int, num_channels: int) -> float:
    """How far H of some calibration tokens is to be trusted: the usual damping, less for many.

    Damping stands for what so few tokens cannot tell, which shrinks as their number grows over
    that of the channels (docs/lab_notes.md).
    """
    return _DAMPING * min(1.0, max(0.1, num_channels / num_tokens))


def fit_clipped(
    grid: WeightGrid, weights: np.ndarray, importance: np.ndarray, num_steps: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zero points of columns that share them, of the least weighted square error.

    Args:
        weights: float32 [columns, rows]; importance: float32 [columns].
        num_steps: ranges that are tried, down to three tenths of what 4-bit weights take up and
            nine tenths of what 8-bit weights do; 0: the whole range alone.
    Returns:
        float32 [rows] each.
    """
    narrowest = _NARROWEST[grid.bits]
    parts = []
    for begin in range(0, weights.shape[1], _ROWS_AT_ONCE):
        part = np.ascontiguousarray(weights[:, begin : begin + _ROWS_AT_ONCE])
        low, high = part.min(axis=0), part.max(axis=0)
        best = grid.fit(low, high)
        if num_steps:
            least = _weighted_error(grid, part, importance, best)
        for share in np.linspace(1, narrowest, num_steps + 1, dtype=np.float32)[1:]:
            tried = grid.fit(low * share, high * share)
            error = _weighted_error(grid, part, importance, tried)
            is_better = error < least
            np.copyto(least, error, where=is_better)
            for values, others in zip(best, tried, strict=True):
                if values is not None and others is not None:
                    np.copyto(values, others, where=is_better)
        parts.append(best)
    scales = np.concatenate([part[0] for part in parts])
    if grid.is_symmetric:
        return scales, None
    return scales, np.concatenate([part[1] for part in parts if part[1] is not None])


def _weighted_error(
    grid: WeightGrid,
    weights: np.ndarray,
    importance: np.ndarray,
    parameters: tuple[np.ndarray, np.ndarray | None],
) -> np.ndarray:
    """float32 [rows]."""
    scales, zeros = parameters
    values = grid.codes(weights, scales, zeros)
    if zeros is not None:
        values -= zeros
    values *= scales
    values -= weights
    return importance @ np.square(values, out=values)


def _factorize(hessian: np.ndarray, order: np.ndarray, damping: float) -> np.ndarray:
    """float32 [columns, columns], the Cholesky factor of H with damping, in an order of columns.

    In float32, and in float64 where that does not succeed: columns that hardly differ.
    """
    damped = hessian[np.ix_(order, order)]  # symmetric: its columns are its rows
    diagonal = np.einsum("ii->i", damped)
    # Inputs that are all zero say nothing: any rounding is as good.
    mean = float(diagonal.mean(dtype=np.float64))
    diagonal += damping * mean if mean else 1.0
    factor, info = lapack.spotrf(damped.astype(np.float32).T, lower=1, overwrite_a=1)
    if info:
        diagonal += 1e-6 * mean
        factor, info = lapack.dpotrf(damped.astype(np.float64).T, lower=1, overwrite_a=1)
        assert info == 0, "X^T X with damping is positive definite"
    return factor.astype(np.float32, copy=False)
