"""backends/cpu/backend.py: threads and memory of a rank, as the rest of the program asks."""

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mindformers_glm.backends.cpu import backend as backend_module
from mindformers_glm.backends.cpu import host_share, library
from mindformers_glm.backends.cpu.backend import CpuBackend
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from tests.unit.core.glm_9b import GLM_9B

ALONE = ProcessGroup(TensorParallel())


def _pair(calls: list[np.ndarray]) -> ProcessGroup:
    """Two ranks on this machine that say the same."""

    def gather(values: np.ndarray) -> np.ndarray:
        calls.append(values)
        return np.stack([values, values])

    return ProcessGroup(TensorParallel(2, 0), gather)


@pytest.fixture
def set_counts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the library is told; no variable says anything."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    counts: list[Any] = []
    monkeypatch.setattr(library, "set_num_threads", counts.append)
    monkeypatch.setattr(library, "num_threads", lambda: counts[-1] or _of_openmp())
    return counts


def _of_openmp() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cores."""
    monkeypatch.setattr(host_share, "usable_processors", lambda: {0, 1})
    monkeypatch.setattr(host_share, "physical_cores", lambda mask: {str(core) for core in mask})


def test_a_number_that_is_asked_for_is_set_and_none_leaves_it_to_the_library(
    set_counts: list[Any],
) -> None:
    CpuBackend().set_num_threads(ALONE, 2)
    CpuBackend().set_num_threads(ALONE, None)
    assert set_counts == [2, None]


@pytest.mark.parametrize(
    ("variable", "expected"), [(None, [1]), ("", [1]), ("1", [1]), ("5", [None, 1])]
)
@pytest.mark.usefixtures("two_processors")
def test_ranks_of_a_machine_share_its_cores_whatever_the_variable_says(
    set_counts: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variable: str | None,
    expected: list[int | None],
) -> None:
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    CpuBackend().set_num_threads(_pair([]), None)
    assert set_counts == expected
    told = "2 ranks share this host's processors: threads of each: 1, since those of OMP_NUM"
    assert (told in capfd.readouterr().err) == (variable == "5")


@pytest.mark.usefixtures("two_processors")
def test_the_variable_holds_where_the_processors_are_enough_for_it(
    set_counts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_share, "usable_processors", lambda: set(range(4)))
    monkeypatch.setattr(host_share, "physical_cores", lambda mask: {str(n // 2) for n in mask})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # hyperthreads, two of each rank
    CpuBackend().set_num_threads(_pair([]), None)
    assert set_counts == [None]


@pytest.mark.usefixtures("two_processors")
def test_too_many_threads_that_are_asked_for_are_set_and_told(
    set_counts: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    CpuBackend().set_num_threads(_pair([]), 2)
    assert set_counts == [2]
    assert "with num_threads 2 each they wait for each other; leave" in capfd.readouterr().err
    CpuBackend().set_num_threads(ALONE, 2)
    assert capfd.readouterr().err == ""


def test_ranks_ask_each_other_whatever_each_was_told(set_counts: list[Any]) -> None:
    calls: list[np.ndarray] = []
    CpuBackend().set_num_threads(_pair(calls), 1)
    assert len(calls) == 1


def test_parts_of_columns_are_for_layers_whose_columns_are_split() -> None:
    settings = RunnerSettings.for_config(GLM_9B, "bfloat16")
    known = ("decoder.layers.0.self_attention.linear_proj", "decoder.layers.0.mlp.linear_fc2")
    CpuBackend().check_supported(GLM_9B, replace(settings, rounded_columns=known))
    for name in ("decoder.layers.0.self_attention.linear_qkv", "output_layer"):
        with pytest.raises(UnsupportedError, match=f"{name} has scales of its inputs for each"):
            CpuBackend().check_supported(GLM_9B, replace(settings, rounded_columns=(name,)))


def test_memory_that_a_rank_holds_counts_as_available_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_share, "read_available_memory", lambda: 1000)
    assert CpuBackend().available_memory(ALONE) == 1000
    assert CpuBackend().available_memory(ALONE, own_bytes=300) == 1300
    assert CpuBackend().available_memory(_pair([]), own_bytes=300) == 800


def test_ranks_tell_each_other_once_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_share, "read_available_memory", lambda: 1000)
    calls: list[np.ndarray] = []
    group = _pair(calls)
    for _ in range(2):
        CpuBackend().available_memory(group)
    # Masks of processors once; and each time a meeting, and what each has found.
    assert [len(values) for values in calls] == [65, 1, 1, 1, 1]


def test_a_library_that_cannot_be_opened_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    assert CpuBackend().find_obstacle() == ""
    monkeypatch.setattr(backend_module.library, "load", fail)
    assert "libgomp.so.1" in CpuBackend().find_obstacle()
