"""Tables of the rotary position embedding."""

import numpy as np

from mindformers_glm.core.rounding import round_to_dtype


def build_cos_sin_table(
    num_positions: int, rotary_dim: int, rope_theta: float, dtype: str
) -> np.ndarray:
    """Cosines and sines of every position for interleaved RoPE.

    The angles are float32 as in Hugging Face; `dtype` is the type the values are rounded to.

    Returns:
        float32 [num_positions, rotary_dim]: rotary_dim / 2 cosines, then as many sines.
    Source: transformers 4.51.3 `Glm4RotaryEmbedding`; Su et al. 2021, arXiv:2104.09864.
    """
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    inverse_frequencies = np.float32(1.0) / np.power(np.float32(rope_theta), exponents)
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * inverse_frequencies[None, :]
    table = np.concatenate((np.cos(angles), np.sin(angles)), axis=1)
    return round_to_dtype(table, dtype)
