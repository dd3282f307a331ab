"""Tables of the rotary position embedding."""

import math

import numpy as np

from mindformers_glm.config.rope_scaling import RopeScaling
from mindformers_glm.core.rounding import round_to_dtype

_CHUNK_POSITIONS = 16384  # a table for a million tokens takes 256 MB; its makings must not


def build_cos_sin_table(
    num_positions: int,
    rotary_dim: int,
    rope_theta: float,
    scaling: RopeScaling | None,
    dtype: str,
) -> np.ndarray:
    """Cosines and sines of every position for interleaved RoPE, times YaRN's attention factor.

    The angles are float32 as in Hugging Face; `dtype` is the type the values are rounded to.

    Returns:
        float32 [num_positions, rotary_dim]: rotary_dim / 2 cosines, then as many sines.
    Source: transformers 4.51.3 `Glm4RotaryEmbedding`; Su et al. 2021, arXiv:2104.09864.
    """
    frequencies = build_inverse_frequencies(rotary_dim, rope_theta, scaling)
    factor = np.float32(1.0 if scaling is None else scaling.attention_factor)
    table = np.empty((num_positions, rotary_dim), np.float32)
    for begin in range(0, num_positions, _CHUNK_POSITIONS):
        rows = table[begin : begin + _CHUNK_POSITIONS]
        positions = np.arange(begin, begin + len(rows), dtype=np.float32)
        angles = positions[:, None] * frequencies[None, :]
        rows[:, : rotary_dim // 2] = np.cos(angles) * factor
        rows[:, rotary_dim // 2 :] = np.sin(angles) * factor
        rows[:] = round_to_dtype(rows, dtype)
    return table


def build_inverse_frequencies(
    rotary_dim: int, rope_theta: float, scaling: RopeScaling | None
) -> np.ndarray:
    """Radians a position of every rotated pair.

    YaRN keeps the pairs that turn often within the trained context (`beta_fast` times and more),
    divides the frequencies of those that turn seldom (`beta_slow` times and less) by `factor`, and
    passes from one to the other linearly.

    Returns:
        float32 [rotary_dim / 2].
    Source: transformers 4.51.3 `_compute_yarn_parameters`; Peng et al. 2023, arXiv:2309.00071.
    """
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    periods = np.power(np.float32(rope_theta), exponents)
    trained = np.float32(1.0) / periods
    if scaling is None:
        return trained
    interpolated = np.float32(1.0) / (np.float32(scaling.factor) * periods)

    def pair_that_turns(num_times: float) -> float:
        context = scaling.original_max_position_embeddings
        turns = math.log(context / (num_times * 2 * math.pi))
        return rotary_dim * turns / (2 * math.log(rope_theta))

    first = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(scaling.beta_slow)), rotary_dim - 1)
    width = np.float32(last - first if last != first else 0.001)
    ramp = (np.arange(rotary_dim // 2, dtype=np.float32) - np.float32(first)) / width
    kept = np.float32(1.0) - np.clip(ramp, 0, 1)
    return interpolated * (np.float32(1.0) - kept) + trained * kept
