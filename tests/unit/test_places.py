"""Tests of the engine stand where tests/README.md says."""

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
MODULES = [path.stem for path in (TESTS.parent / "mindformers_glm/engine").glob("[a-z]*.py")]


@pytest.mark.parametrize(
    "path", sorted((TESTS / "unit/engine").glob("test_*.py")), ids=lambda path: path.name
)
def test_a_unit_test_of_the_engine_begins_with_its_modules_name(path: Path) -> None:
    name = path.stem.removeprefix("test_")
    assert any(name == module or name.startswith(f"{module}_") for module in MODULES)


@pytest.mark.parametrize(
    "path", sorted((TESTS / "engine").glob("test_*.py")), ids=lambda path: path.name
)
def test_a_test_of_the_whole_engine_runs_it_on_the_fake_runner(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    parts = ("fake_runner", "drive", "conftest")
    assert any(f"from tests.engine.{part} import" in text for part in parts)
