"""What calibration has seen of the input of a linear layer, all that the methods here look at."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class InputStatistics:
    """The input of one linear layer, or of several that share it, over all calibration samples.

    A channel is a column of the weight.

    Attributes:
        maximum, minimum: float32 [channels].
        mean_abs: float32 [channels], of all tokens.
        shifted_max: float32 [channels], the most by which a channel lies above the middle of its
            range; the middle is that of the samples up to each one, as msModelSlim has it.
        shifted_std: the largest standard deviation within a sample, of all channels together, when
            each is shifted by its middle.
        samples: float32 [tokens, channels], inputs that searches measure their error on.
        hessian: float32 [channels, channels], X^T X of all tokens; None: was not asked for.
    """

    maximum: np.ndarray
    minimum: np.ndarray
    mean_abs: np.ndarray
    shifted_max: np.ndarray
    shifted_std: np.float32
    samples: np.ndarray
    hessian: np.ndarray | None = None

    @property
    def abs_max(self) -> np.ndarray:
        """float32 [channels]."""
        return np.maximum(np.abs(self.maximum), np.abs(self.minimum))

    @property
    def middle(self) -> np.ndarray:
        """float32 [channels]: half way between minimum and maximum."""
        return (self.maximum + self.minimum) / np.float32(2)

    def divided_by(self, scales: np.ndarray) -> "InputStatistics":
        """The same once the input is divided by float32 [channels], as smoothing leaves it.

        The deviation keeps its meaning for no scales but equal ones: only m2 reads it, before.
        """
        hessian = self.hessian
        return replace(
            self,
            maximum=self.maximum / scales,
            minimum=self.minimum / scales,
            mean_abs=self.mean_abs / scales,
            shifted_max=self.shifted_max / scales,
            samples=self.samples / scales,
            hessian=None if hessian is None else hessian / scales / scales[:, None],
        )


class StatisticsCollector:
    """Gathers InputStatistics sample by sample."""

    def __init__(self, num_kept_tokens: int = 512, has_hessian: bool = False) -> None:
        """
        Args:
            num_kept_tokens: of `samples`, the first that come, in whole samples and at least one;
                1 keeps the first sample, which is all that msModelSlim's searches look at.
            has_hessian: whether X^T X is summed: channels^2 * 4 bytes.
        """
        self._num_kept_tokens = num_kept_tokens
        self._has_hessian = has_hessian
        self._sums: dict[str, np.ndarray] = {}
        self._shifted_std = np.float32(0)
        self._kept: list[np.ndarray] = []
        self._num_tokens = 0

    def add(self, inputs: np.ndarray) -> None:
        """Look at one sample: float32 [tokens, channels], at least one token."""
        maximum, minimum = inputs.max(axis=0), inputs.min(axis=0)
        self._extend("maximum", maximum, np.maximum)
        self._extend("minimum", minimum, np.minimum)
        middle = (self._sums["maximum"] + self._sums["minimum"]) / np.float32(2)
        self._extend("shifted_max", maximum - middle, np.maximum)
        self._extend("sum_abs", np.abs(inputs).sum(axis=0, dtype=np.float64), np.add)
        if inputs.size > 1:
            deviation = np.float32((inputs - middle).std(dtype=np.float64, ddof=1))
            self._shifted_std = max(self._shifted_std, deviation)
        if self._has_hessian:
            self._extend("hessian", inputs.T @ inputs, np.add)
        if sum(map(len, self._kept)) < self._num_kept_tokens:
            self._kept.append(inputs.copy())
        self._num_tokens += len(inputs)

    def finish(self) -> InputStatistics:
        """What has been seen; at least one sample has been."""
        assert self._num_tokens, "no calibration sample was run"
        return InputStatistics(
            maximum=self._sums["maximum"],
            minimum=self._sums["minimum"],
            mean_abs=(self._sums["sum_abs"] / self._num_tokens).astype(np.float32),
            shifted_max=self._sums["shifted_max"],
            shifted_std=self._shifted_std,
            samples=np.concatenate(self._kept),
            hessian=self._sums.get("hessian"),
        )

    def _extend(self, name: str, values: np.ndarray, join: np.ufunc) -> None:
        if name in self._sums:
            join(self._sums[name], values, out=self._sums[name])
        else:
            self._sums[name] = values
