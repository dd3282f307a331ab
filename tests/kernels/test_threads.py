"""The number of threads is one for all that call operators; one of them keeps its team."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from aot_call import KernelRefusedError, call

from mindformers_glm.backends.cpu import library, mapped_memory, tile_packing
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.processors import count_physical_cores

_TASKS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def _default_afterwards() -> Iterator[None]:
    yield
    library.set_num_threads(None)


def _needs_gccs_openmp() -> None:
    if "clang" in library.describe_build():
        pytest.skip("LLVM's OpenMP has one set of threads for all callers, and refuses empty words")


def _run_a_linear() -> None:
    shape = (64, 8, tile_packing.TILE_N, tile_packing.TILE_K)
    x, tiles = np.ones((32, 256), np.float32), np.ones(shape, np.float32)
    out = np.empty((32, 64 * tile_packing.TILE_N), np.float32)
    call("glm_linear_f32", x, tiles, np.array([32], np.int32), out=out)


def _count_threads_started_by_a_linear() -> int:
    before = set(os.listdir(_TASKS))
    _run_a_linear()
    return len(set(os.listdir(_TASKS)) - before)  # others may end meanwhile


@pytest.mark.skipif(not _TASKS.is_dir(), reason="needs /proc")
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_thread_that_knows_nothing_of_it_uses_the_number(num_threads: int) -> None:
    _needs_gccs_openmp()
    # Past the check: more threads than this machine may have are only slow.
    library.load().glm_set_num_threads(num_threads)
    with ThreadPoolExecutor(1) as pool:  # OpenMP keeps a team for each calling thread
        pool.submit(library.keep_team).result()
        assert pool.submit(_count_threads_started_by_a_linear).result() == num_threads - 1


@pytest.mark.skipif(not _TASKS.is_dir(), reason="needs /proc")
def test_one_thread_keeps_its_team() -> None:
    _needs_gccs_openmp()
    library.load().glm_set_num_threads(3)
    with ThreadPoolExecutor(1) as keeper, ThreadPoolExecutor(1) as other:
        keeper.submit(library.keep_team).result()
        assert keeper.submit(_count_threads_started_by_a_linear).result() == 2
        assert keeper.submit(_count_threads_started_by_a_linear).result() == 0
        other.submit(os.getpid).result()
        num_tasks = _count_tasks_when_settled()
        other.submit(_count_threads_started_by_a_linear).result()
        _wait_for_tasks(num_tasks)
        keeper.submit(library.leave_team).result()
        _wait_for_tasks(num_tasks - 2)


def _count_tasks_when_settled() -> int:
    """Threads of earlier tests may still be about to end."""
    counts = [len(os.listdir(_TASKS))]
    while len(counts) < 20 or len(set(counts[-20:])) > 1:
        time.sleep(0.01)
        counts.append(len(os.listdir(_TASKS)))
    return counts[-1]


def _wait_for_tasks(count: int) -> None:
    deadline = time.monotonic() + 10
    while len(os.listdir(_TASKS)) != count:  # threads end after the call that ends them
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("keeps_team", [True, False])
def test_the_callers_number_of_openmp_threads_is_its_own(keeps_team: bool) -> None:
    openmp = library.load()  # names the functions of what it is linked with, too
    openmp.glm_set_num_threads(3)

    def run_operators() -> list[int]:
        openmp.omp_set_num_threads(7)
        found = []
        for step in (
            library.keep_team if keeps_team else library.load,
            _run_a_linear,
            lambda: mapped_memory.first_touch(np.zeros((8, 4096), np.float32)),
            library.leave_team,
        ):
            step()
            found.append(openmp.omp_get_max_threads())
        return found

    with ThreadPoolExecutor(1) as caller, ThreadPoolExecutor(1) as keeper:
        keeper.submit(library.keep_team).result()  # so that the caller's own team is dissolved
        assert caller.submit(run_operators).result() == [7] * 4


def test_the_callers_number_is_its_own_after_an_operator_that_refuses() -> None:
    openmp = library.load()  # names the functions of what it is linked with, too
    openmp.glm_set_num_threads(3)

    def fail() -> int:
        openmp.omp_set_num_threads(7)
        with pytest.raises(KernelRefusedError):
            call("glm_linear_f32", out=np.empty((1, 1), np.float32))
        return openmp.omp_get_max_threads()

    with ThreadPoolExecutor(1) as caller:
        assert caller.submit(fail).result() == 7


def test_the_number_can_be_set_and_taken_back() -> None:
    library.set_num_threads(1)
    assert library.num_threads() == 1
    library.set_num_threads(None)
    if "OMP_NUM_THREADS" not in os.environ:
        assert library.num_threads() == count_physical_cores()


@pytest.mark.parametrize("wrong", [0, -1, 10_000, 1.5, True, "2"])
def test_a_number_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="num_threads must be a whole number from 1 to"):
        library.set_num_threads(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("variable", "expected"), [("3", "3 1 3"), ("", "cores 1 cores")])
def test_omp_num_threads_counts_where_nothing_is_set(variable: str, expected: str) -> None:
    if not variable:
        _needs_gccs_openmp()
    script = (
        "from mindformers_glm.backends.cpu import library as l\n"
        "first = l.num_threads(); l.set_num_threads(1); second = l.num_threads()\n"
        "l.set_num_threads(None); print(first, second, l.num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"OMP_NUM_THREADS": variable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected.replace("cores", str(count_physical_cores()))


_IN_A_PROCESS_OF_ITS_OWN = """
import numpy as np
from mindformers_glm.backends.cpu import library
from aot_call import call
from tests.kernels.kernel_calls import count, output, packed, packed_ints

rng = np.random.default_rng(0)
weight = rng.standard_normal((22 * 16, 1100)).astype(np.float32)
ints = packed_ints(np.int32(weight * 9).clip(-127, 127), np.ones((352, 1), np.float32), 8, 0)
x = rng.standard_normal((7, 1100)).astype(np.float32)
for symbol, arrays in (("f32", [packed(weight, "float32")]), ("w8a8", ints)):
    found = []
    for num_threads in (1, 4):
        library.load().glm_set_num_threads(num_threads)
        found.append(call(f"glm_linear_{symbol}", x, *arrays, count(7), out=output(7, 352)))
    np.testing.assert_array_equal(found[1], found[0])
"""


@pytest.mark.parametrize("variable", ["OMP_THREAD_LIMIT=1", "OMP_DYNAMIC=true"])
def test_fewer_threads_than_asked_for_do_all_of_the_work(variable: str) -> None:
    # pyproject.toml puts scripts/bench on the path of pytest only.
    path = os.pathsep.join(["scripts/bench", os.environ.get("PYTHONPATH", "")])
    environment = os.environ | dict([variable.split("=")]) | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", _IN_A_PROCESS_OF_ITS_OWN], env=environment, check=True)
