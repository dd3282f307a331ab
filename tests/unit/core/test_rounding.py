"""core/rounding.py against torch's conversions."""

import numpy as np
import pytest

from mindformers_glm.core.rounding import round_to_dtype

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_equals_torch(dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4096) * 10.0 ** rng.integers(-6, 4, 4096)).astype(np.float32)
    expected = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(round_to_dtype(values, dtype), expected)


def test_a_tie_goes_to_the_even_neighbour() -> None:
    # 1 + 2**-8 lies halfway between bfloat16's 1 and 1 + 2**-7.
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    assert round_to_dtype(values, "bfloat16").tolist() == [1.0, 1 + 2**-6]
