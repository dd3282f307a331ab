"""What is said about running on the processors."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.diagnosis import diagnose
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.finding import Finding
from tests.unit.fake_host import make_host, write_files


def find(name: str, root: Path, environ: Mapping[str, str] | None = None) -> Finding:
    (found,) = (row for row in diagnose(make_host(root, environ)) if row.name == name)
    return found


@pytest.fixture
def best_isa() -> str:
    return library.available_isas()[0]


def test_the_operators_are_named_with_their_instruction_set(tmp_path: Path, best_isa: str) -> None:
    library.select_isa(best_isa)
    finding = find("operators", tmp_path)
    assert finding.found == f"{best_isa}, {library.describe_build()}"
    assert finding.state == "ok"


def test_an_instruction_set_that_was_asked_for_is_told(tmp_path: Path, best_isa: str) -> None:
    library.select_isa("portable")
    try:
        finding = find("operators", tmp_path)
    finally:
        library.select_isa(best_isa)
    assert finding.state == "hint"
    assert finding.advice.startswith("Unset MINDFORMERS_GLM_ISA")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (UnsupportedError("The CPU kernels are not built: run this."), "not built: run this."),
        (OSError("libgomp.so.1: cannot open"), "Run `pip install -e .`"),
    ],
)
def test_kernels_that_cannot_be_loaded_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(library, "load", fail)
    finding = find("operators", tmp_path)
    assert (finding.found, finding.state) == ("not usable", "problem")
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ("", "ok"),
        ("2", "ok"),
        ("2,1", "ok"),
        ("1", "hint"),
        ("3", "hint"),
        ("0", "hint"),
        ("x", "hint"),
    ],
)
def test_the_number_of_threads_is_held_against_the_cores(
    tmp_path: Path, given: str, state: str
) -> None:
    assert find("threads", tmp_path, {"OMP_NUM_THREADS": given}).state == state


def test_mindies_advice_of_one_thread_gets_a_better_one(tmp_path: Path) -> None:
    finding = find("threads", tmp_path, {"OMP_NUM_THREADS": "1"})
    assert "--num_threads 2" in finding.advice
    assert "OPENBLAS_NUM_THREADS=1" in finding.advice


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("[always] madvise never", "ok"),
        ("always [madvise] never", "ok"),
        ("always madvise [never]", "hint"),
        ("", "ok"),
    ],
)
def test_huge_pages_that_are_forbidden_are_told(tmp_path: Path, text: str, state: str) -> None:
    host = make_host(tmp_path)
    write_files(tmp_path, {"sys/kernel/mm/transparent_hugepage/enabled": text})
    (finding,) = (row for row in diagnose(host) if row.name == "huge pages")
    assert finding.state == state
