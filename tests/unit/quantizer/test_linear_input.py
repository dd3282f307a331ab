"""What methods of rounding ask of an input."""

import numpy as np

from mindformers_glm.quantizer.linear_input import LinearInput


def test_the_hessian_is_the_sum_over_all_rows() -> None:
    x = np.random.default_rng(0).standard_normal((2500, 6)).astype(np.float32)  # three chunks
    given = LinearInput(x, [slice(0, 2500)])
    np.testing.assert_allclose(given.hessian, x.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-2)
    assert given.hessian is given.hessian  # computed once for q, k and v
