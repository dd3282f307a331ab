"""The instruction sets that kernel tests run on."""

from collections.abc import Iterator

import numpy as np
import pytest

from mindformers_glm.kernels.cpu import library


@pytest.fixture(params=["portable", "avx2", "avx512", "amx", "amx_emulated"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set this machine can run; the default is back afterwards."""
    if request.param not in library.available_isas():
        pytest.skip(f"this machine cannot run {request.param}")
    before = library.isa()
    library.select_isa(request.param)
    yield request.param
    library.select_isa(before)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20250414)
