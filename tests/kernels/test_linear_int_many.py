"""Linear layers on integer weights for many tokens, where kernels have ways of their own."""

import numpy as np
import pytest
from aot_call import call

from tests.conftest import TOLERANCES, relative_error
from tests.kernels import reference
from tests.kernels.kernel_calls import UNTOUCHED, count, output
from tests.kernels.test_linear_int_affine import Format, Matrix

# Tokens that fill 16 and 32 rows, and some more or less; the last is the most.
ROW_COUNTS = [64, 79, 128, 129, 145]
# (K, N): less than a group; several blocks of columns, an odd number of tile rows, and one over.
SHAPES = [(8, 5), (580, 49)]
FORMATS = [
    Format(8, 0, False, False),
    Format(8, 0, True, False),
    Format(8, 32, False, False),
    Format(8, 128, True, True),
    Format(4, 32, False, False),
    Format(4, 32, True, False),
    Format(4, 64, True, True),
    Format(4, 128, False, False),
    Format(4, 128, True, False),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("form", "activation_bits"),
    [(form, 16) for form in FORMATS] + [(FORMATS[0], 8), (FORMATS[4], 8), (FORMATS[7], 8)],
    ids=str,
)
def test_many_rows_equal_the_reference_and_each_alone(
    isa: str, rng: np.random.Generator, shape: tuple[int, int], form: Format, activation_bits: int
) -> None:
    k, n = shape
    matrix = Matrix(rng, n, k, form, has_far_zeros=True)
    x = rng.standard_normal((ROW_COUNTS[-1] + 1, k)).astype(np.float32)
    expected = reference.quantized_linear(
        x, num_rows=len(x), activation_bits=activation_bits, **matrix.meaning
    )
    name = form.symbol("linear").replace("a16", f"a{activation_bits}")
    alone = np.concatenate(
        [
            call(name, x[row : row + 1], *matrix.operands(), count(1), out=output(1, n))
            for row in (0, 15, 16, 63, 144)
        ]
    )
    for m in ROW_COUNTS:
        y = call(name, x, *matrix.operands(), count(m), out=output(len(x), n))
        assert relative_error(y[:m], expected[:m]) < TOLERANCES["kernel_float32"], m
        assert (y[m:] == UNTOUCHED).all(), "rows that are not real were written"
        known = [i for i, row in enumerate((0, 15, 16, 63, 144)) if row < m]
        assert (y[[(0, 15, 16, 63, 144)[i] for i in known]] == alone[known]).all(), m
