"""The documentation names only what exists, and every setting."""

import re
from pathlib import Path

import pytest

from mindformers_glm.config.refused_settings import REFUSED
from mindformers_glm.config.settings_table import SETTINGS
from scripts.write_configuration_docs import tables_by_page, write_tables

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "README_CN.md", *sorted((ROOT / "docs").glob("*.md"))]
# Paths are written from the root or, where a page says so, from one of these.
_STARTS = [ROOT, ROOT / "docs", ROOT / "mindformers_glm", ROOT / "mindformers_glm/backends/cpu"]
_PATH = re.compile(r"(?<![\w/.-])(?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md|yaml|cc|h)\b")
_QUOTED = re.compile(r"`([^`\n]+)`")


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    paths = set(_PATH.findall(_read(page)))
    missing = [p for p in paths if not any((start / p).exists() for start in _STARTS)]
    assert not missing


def test_every_setting_is_documented() -> None:
    quoted = set(_QUOTED.findall(_read(ROOT / "docs/configuration.md")))
    names = [setting.path for setting in SETTINGS]
    # A generation setting's two other places are one sentence, not sixteen rows.
    names += [
        alias
        for setting in SETTINGS
        for alias in setting.aliases
        if alias.rsplit(".", 1)[-1] != setting.path
    ]
    names += [f"--{option}" for setting in SETTINGS for option in setting.options]
    assert [name for name in names if name not in quoted] == []


@pytest.mark.parametrize(("page", "tables"), tables_by_page().items(), ids=tables_by_page())
def test_tables_are_what_the_script_writes(page: str, tables: dict[str, str]) -> None:
    text = _read(ROOT / "docs" / page)
    assert write_tables(text, tables) == text, "run python scripts/write_configuration_docs.py"


def test_a_section_of_settings_without_a_place_in_the_documentation_is_an_error() -> None:
    text = _read(ROOT / "docs/configuration.md").replace("<!-- table: Memory -->", "")
    with pytest.raises(ValueError, match="there are What to run, Generation"):
        write_tables(text, tables_by_page()["configuration.md"])


def test_every_refused_setting_is_documented() -> None:
    quoted = set(_QUOTED.findall(_read(ROOT / "docs/configuration.md")))
    # Keys of one block are listed by their last part behind the block's name.
    assert [n for n in REFUSED if n not in quoted and n.rsplit(".", 1)[-1] not in quoted] == []


def test_both_readmes_have_the_same_commands() -> None:
    def code_lines(page: str) -> list[str]:
        lines = [line for line in _read(ROOT / page).splitlines() if line.startswith("    ")]
        return [line.split("  # ")[0].rstrip() for line in lines]

    assert code_lines("README_CN.md") == code_lines("README.md") != []


def test_feature_table_has_one_row_for_each_id() -> None:
    counts = {"A": [*range(1, 34), *range(40, 45)], "B": 33, "C": 37, "D": 14, "E": 23}
    expected = [
        f"{letter}{number:02}"
        for letter, numbers in counts.items()
        for number in (range(1, numbers + 1) if isinstance(numbers, int) else numbers)
    ]
    table = _read(ROOT / "docs/feature_table.md")
    assert re.findall(r"^\| ([A-E]\d\d) \|", table, re.MULTILINE) == expected


def test_structure_leads_through_at_most_ten_files() -> None:
    files = re.findall(r"^\d+\. \*\*", _read(ROOT / "docs/structure.md"), re.MULTILINE)
    assert 0 < len(files) <= 10


def test_structure_names_functions_where_they_are() -> None:
    text = _read(ROOT / "docs/structure.md")
    # "engine/llm_engine.py** `step`" and "[core/operators.py `Operators`"
    pairs = re.findall(r"([\w/]+\.(?:py|h|cc))\*{0,2} `([\w.]+)`", text)
    assert len(pairs) > 15
    wrong = [
        f"{path} {name}"
        for path, name in pairs
        for file in [next(s / path for s in _STARTS if (s / path).exists())]
        if not re.search(rf"\b{name.split('.')[-1]}\b", _read(file))
    ]
    assert not wrong
