"""The instruction sets that kernel tests run on."""

import os
import platform
import shlex
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mindformers_glm.backends.cpu import library
from tests.kernels.emulated.library import EmulatedLibrary

ISAS = {
    "x86_64": ["portable", "avx2", "avx512", "amx", "amx_emulated"],
    "aarch64": ["portable", "neon", "neon_dotprod", "neon_bf16"],
}.get(platform.machine(), ["portable"])

# The kernels of another processor: an emulator's command line, and the instruction set it must
# choose (scripts/test_aarch64.sh). Emulation is slow, so the others are left out.
if command := os.environ.get("GLM_TEST_EMULATOR"):
    ISAS = [os.environ["GLM_TEST_EMULATED_ISA"]]
    emulated = EmulatedLibrary(shlex.split(command))
    library.load = lambda: emulated
    if [library.isa()] != ISAS:
        raise pytest.UsageError(f"{command} chooses {library.isa()} instead of {ISAS[0]}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what does not depend on the instruction set where there is one only."""
    if command:
        items[:] = [item for item in items if "isa" in getattr(item, "fixturenames", ())]


@pytest.fixture(params=ISAS)
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


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    """Changes how many threads the kernels use; the number is back afterwards."""
    kernels = library.load()  # takes more threads than there are processors
    before = library.num_threads()
    yield kernels.glm_set_num_threads
    kernels.glm_set_num_threads(before)
