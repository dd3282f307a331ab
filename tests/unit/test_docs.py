"""The documentation names only what exists, and every setting."""

import ast
import inspect
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from token import NAME

import pytest

from mindformers_glm.backends import Backend, ModelRunner
from mindformers_glm.config.refused_settings import REFUSED
from mindformers_glm.config.settings_table import SETTINGS
from scripts.write_configuration_docs import tables_by_page, write_tables

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "README_CN.md", *sorted((ROOT / "docs").glob("*.md"))]
# Paths are written from the root or, where a page says so, from one of these.
_STARTS = [ROOT, ROOT / "docs", ROOT / "mindformers_glm", ROOT / "mindformers_glm/backends/cpu"]
_PATH = re.compile(r"(?<![\w/.-])(?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md|yaml|cc|h)\b")
_QUOTED = re.compile(r"`([^`\n]+)`")
_MAX_LINE = 140


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


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_prose_stands_in_lines_of_at_most_140_characters(page: Path) -> None:
    assert [line for line in _prose(_read(page)) if _is_too_long(line)] == []


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("word " * 30, True),
        ("  - " + "word " * 30, True),
        ("字" * 141, True),
        ("| " + "word " * 30 + " |", False),
        ("    " + "word " * 30, False),
        ("```\n" + "word " * 30 + "\n```", False),
        ("- https://" + "a" * 140, False),
    ],
    ids=["prose", "item", "Chinese", "table", "indented code", "fenced code", "address"],
)
def test_only_long_lines_of_prose_are_found(text: str, is_found: bool) -> None:
    assert any(_is_too_long(line) for line in _prose(text)) == is_found


def test_structure_leads_through_short_lists_of_files() -> None:
    parts = re.split(r"^#+ ", _structure(), flags=re.MULTILINE)
    lists = [re.findall(r"^\d+\. \*\*([\w/.]+)\*\*", part, re.MULTILINE) for part in parts]
    assert sum(map(bool, lists)) >= 5
    assert max(map(len, lists)) <= 10


def test_structure_takes_a_step_to_the_kernel_in_at_most_7_python_files() -> None:
    _, _, rest = _structure().partition("### A forward on the CPU")
    files = re.findall(r"^\d+\. \*\*([\w/.]+)\*\*", rest.partition("\n## ")[0], re.MULTILINE)
    assert 0 < sum(file.endswith(".py") for file in files) <= 7


def test_structure_hides_no_file_in_brackets() -> None:
    # [text](address) is a link.
    hidden = r"\[[^\[\]]*\w\.(?:py|cc|h)\b[^\[\]]*\](?!\()"
    assert re.findall(hidden, _structure()) == []


def test_structure_names_what_is_defined_in_the_file_before_it() -> None:
    # "**engine/llm_engine.py** `LLMEngine.step`", "core/operators.py `Operators`"
    pairs = re.findall(r"([\w/]+\.(?:py|h|cc))\*{0,2}\s+`([\w.]+)`", _structure())
    assert len(pairs) > 40
    wrong = [f"{path} {name}" for path, name in pairs if not _defines(path, name)]
    assert wrong == []


def test_structure_names_nothing_that_is_not_in_the_code() -> None:
    sources = [
        file for part in ("mindformers_glm", "scripts") for file in (ROOT / part).rglob("*.py")
    ]
    kernels = (ROOT / "mindformers_glm/backends/cpu/csrc").rglob("*.[ch]*")
    known = {token.string for file in sources for token in _name_tokens(file)}
    known |= {word for file in kernels for word in re.findall(r"\w+", _read(file))}
    named = {name for name in _QUOTED.findall(_structure()) if re.fullmatch(r"[\w.]+", name)}
    assert len(named) > 60
    assert [name for name in sorted(named) if name.split(".")[-1] not in known] == []


def _structure() -> str:
    return _read(ROOT / "docs/structure.md")


def _prose(text: str) -> Iterator[str]:
    """Lines that stand neither in a table nor in code."""
    is_fenced = is_code = False
    before = ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        # Code begins behind a blank line; the second line of a list item may stand as far right.
        is_code = line.startswith("    ") and (is_code or not before.strip())
        if not (is_fenced or is_code or line.startswith("|")):
            yield line
        before = line


def _is_too_long(line: str) -> bool:
    """Whether it is, and has a place where it can be broken: a blank, or any in Chinese."""
    words = re.sub(r"^\s*(?:[-*>]\s|\d+\.\s)?", "", line).rstrip()
    return len(line.rstrip()) > _MAX_LINE and bool(re.search(r"\s|[\u3000-\u9fff]", words))


def _defines(path: str, name: str) -> bool:
    file = next((start / path for start in _STARTS if (start / path).exists()), None)
    if file is None:
        return False
    if file.suffix != ".py":
        return re.search(rf"\b{name}\b", _read(file)) is not None
    names = set(_defined_names(ast.parse(_read(file))))
    return name in names or any(known.endswith(f".{name}") for known in names)


def _defined_names(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Functions, classes and what is assigned, those of a class behind its name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _defined_names(node, f"{prefix}{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def _name_tokens(file: Path) -> Iterator[tokenize.TokenInfo]:
    with file.open("rb") as source:
        yield from (token for token in tokenize.tokenize(source.readline) if token.type == NAME)


@pytest.mark.parametrize("protocol", [Backend, ModelRunner])
def test_structure_lists_every_method_of_the_device_boundary(protocol: type) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", _read(ROOT / "docs/structure.md"), re.MULTILINE)
    methods = [name for name, part in vars(protocol).items() if inspect.isfunction(part)]
    assert [name for name in methods if not name.startswith("_") and name not in rows] == []
