"""What scripts/check_versions.py makes of the commands that it runs; no environment is made."""

from pathlib import Path

import pytest

from mindformers_glm.config.supported_versions import PINNED, TESTED
from scripts.check_versions import (
    CHECKS,
    PAIRS,
    ROOT,
    Outcome,
    Result,
    main,
    read_outcome,
    table_lines,
)

LOG = Path("x.log")
FAILED = "FAILED tests/model/test_a.py::test_b - ImportError: no name c"


@pytest.mark.parametrize(
    ("code", "said", "cell", "first_problem"),
    [
        (0, ["....", "4 passed in 1.2s"], "4 passed", None),
        (0, ["4 passed, 1 skipped, 2 warnings in 1.2s"], "4 passed", None),
        (1, [FAILED, "1 failed, 3 passed in 2s"], "**1 of 4 failed**", FAILED),
        (2, ["ERROR tests/a.py - KeyError: 1", "1 error in 0.1s"], "**1 of 1 failed**", "ERROR"),
        (5, ["no tests ran in 0.1s"], "**failed**", "no tests ran"),
        (0, ["2 deselected in 0.1s"], "**failed**", "2 deselected"),
        (-11, ["Fatal Python error: Segmentation fault", ""], "**failed**", "Fatal Python error"),
        (1, [], "**failed**", "exit 1"),
    ],
)
def test_a_check_passes_only_where_tests_ran_and_none_failed(
    code: int, said: list[str], cell: str, first_problem: str | None
) -> None:
    outcome = read_outcome(code, said, LOG, is_test=True)
    assert outcome.cell == cell
    assert [problem.startswith(first_problem or "?") for problem in outcome.problems[:1]] == [
        True
    ] * bool(first_problem)


def test_what_is_no_test_passes_by_its_exit_code() -> None:
    assert read_outcome(0, [], LOG, is_test=False) == Outcome("works")
    said = ["Traceback", "ImportError: no name c"]
    assert read_outcome(1, said, LOG, is_test=False).problems[0] == "ImportError: no name c"


def test_a_row_has_a_cell_for_each_check_also_where_nothing_was_installed() -> None:
    failed = Outcome("failed", ["ERROR: no distribution"], date="2026-11-30")
    found = {"2.0.0/2.10.0": Result(outcomes={"installation": failed})}
    head, line, row = table_lines(found)
    assert head.count("|") == line.count("|") == row.count("|")
    assert row.count("not run") == len(CHECKS)
    assert row.endswith("| 2026-11-30 |")


def test_what_is_known_of_a_pair_is_kept_between_runs(tmp_path: Path) -> None:
    outcome = Outcome("**1 of 2 failed**", [FAILED], 2.0, "abc", "2026-11-30")
    Result("Python 3.11.7", {"import": outcome}).write(tmp_path / "x.json")
    assert Result.read(tmp_path / "x.json") == Result("Python 3.11.7", {"import": outcome})
    assert Result.read(tmp_path / "y.json") == Result()


def test_a_pair_is_two_versions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["1.8.0"])
    assert f"a pair is written like {PAIRS[0]}" in capsys.readouterr().err


def test_every_check_names_tests_that_are_there() -> None:
    paths = [word for command in CHECKS.values() for word in command if word.endswith(".py")]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_documentation_has_every_release_that_was_tested() -> None:
    page = (ROOT / "docs/versions.md").read_text(encoding="utf-8")
    for row in TESTED:
        mindformers, mindspore = row.packages["mindformers"], row.packages["mindspore"]
        assert f"| {mindformers} | {mindspore} | {row.cann} | {row.hdk} |" in page
        # What was run on it; on the pin the whole suite.
        assert row is PINNED or f"| {mindformers} / {mindspore} |" in page
