"""The network's operators in float32, one at a time: what quantizers run a layer with."""

from typing import Protocol

import numpy as np


class FloatMatrix(Protocol):
    """A matrix that is ready to be multiplied by."""

    def multiply(self, x: np.ndarray) -> np.ndarray:
        """float32 [rows, columns of the matrix] -> [rows, rows of the matrix]."""
        ...


class FloatOperators(Protocol):
    """Operators for sequences that always come together, whole, one behind the other.

    The same calls give the same bits.
    """

    def matrix(self, weight: np.ndarray) -> FloatMatrix:
        """float32 [out, in] as it is multiplied by; the weight may go afterwards."""
        ...

    def integer_matrix(self, codes: np.ndarray) -> FloatMatrix:
        """int8 [out, in], for products with whole numbers of at most 256.

        Such products are exact as long as their sums stay below 2^24.
        """
        ...

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """RMSNorm of float32 [rows, size]."""
        ...

    def rotate_keys(self, keys: np.ndarray) -> np.ndarray:
        """float32 [rows, kv_heads * head_dim] of all sequences, as the KV cache has them."""
        ...

    def attend(self, qkv: np.ndarray) -> np.ndarray:
        """float32 [rows, (heads + 2 kv_heads) * head_dim] of all sequences -> heads * head_dim."""
        ...
