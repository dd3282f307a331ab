"""How many streams of memory a single row's weights are read by changes no bit."""

import numpy as np
import pytest
from aot_call import call

from mindformers_glm.backends.cpu import library
from tests.kernels.kernel_calls import count, output, packed_ints, packed_zeros
from tests.kernels.test_linear_int import some_ints

K, N = 2080, 150  # several blocks of columns; ten tile rows are two times four and two
FORMATS = [
    (8, 0, "a8"),
    (8, 0, "a16"),
    (8, 0, "a8_token"),
    (4, 64, "a8"),
    (4, 128, "a16"),
    (4, 64, "a16_zeros"),
]


@pytest.mark.parametrize("isa", ["avx2", "avx512", "amx"], indirect=True)  # the others have one way
@pytest.mark.parametrize(("bits", "group", "activations"), FORMATS)
def test_streams_change_no_bit(
    isa: str, rng: np.random.Generator, bits: int, group: int, activations: str
) -> None:
    q, scales = some_ints(rng, N, K, bits, group)
    arrays = packed_ints(q, scales, bits, group)
    if activations.endswith("zeros"):
        zeros = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), scales.shape)
        arrays = (*arrays, packed_zeros(zeros, K, bits, group))
    x = rng.standard_normal((1, K)).astype(np.float32)
    set_streams = library.load().glm_set_weight_streams
    try:
        found = []
        for streams in (1, 4):
            assert set_streams(streams) == streams
            name = f"glm_linear_w{bits}{activations}"
            found.append(call(name, x, *arrays, count(1), out=output(1, N)))
    finally:
        assert set_streams(0) in (1, 4)
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()
