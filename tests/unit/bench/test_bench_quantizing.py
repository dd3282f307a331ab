"""Rows and claims of bench_quantizing.py, its tables, and that it keeps what it has measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench_quantizing import MeasuredCells
from machine import REPO
from outlier_models import MeasuredModel
from quantizing_rows import ANTI_METHODS, Row, check_claims, list_rows
from quantizing_tables import FLOAT, anti_table, main_table

from mindformers_glm.core.errors import ConfigError


def _cell(kl: float, right: int | None = None, size: int = 100) -> dict[str, Any]:
    answers = None
    if right is not None:
        answers = {"num_questions": 200, "reference_right": 190, "right": right, "same": 180}
    return {"logits": {"kl": kl}, "answers": answers, "bytes": size}


def test_no_two_rows_are_alike_and_each_has_options() -> None:
    rows = list_rows()
    for row in rows:
        assert row.to_options().anti_method == (row.anti_method or None)
    assert len({row.name for row in rows}) == len(rows)


def test_each_way_behind_an_anti_outlier_method_is_one_without_too() -> None:
    rows = list_rows()
    plain = {(row.scheme, row.way) for row in rows if not row.anti_method}
    behind = [row for row in rows if row.anti_method]
    assert {(row.scheme, row.way) for row in behind} < plain
    assert {row.anti_method for row in behind} == set(ANTI_METHODS)


def test_claims_are_judged_by_rows_that_were_run() -> None:
    found = {
        "W8A16, nearest": _cell(0.1, 190),
        "W8A8, nearest": _cell(0.1, 187),
        "W8A8, best": _cell(0.2),
        "W8A8, as msModelSlim, m1": _cell(0.2),
        "W8A8, as msModelSlim, m4": _cell(0.1),
        "W4A16 g64, nearest": _cell(0.4),
        "W4A16 g64, GPTQ": _cell(0.2),
    }
    verdicts = [line.rpartition(": ") for line in check_claims("x", found)]
    assert [
        (what.split(" loses")[0].split(" has")[0], verdict) for what, _, verdict in verdicts
    ] == [
        ("x: W8A16, nearest", "holds"),
        ("x: W8A8, nearest", "FAILS"),
        ("x: W4A16 g64, KL of nearest is 2.00 times GPTQ's, at least 1.5", "holds"),
        ("x: W8A8 best", "FAILS"),
    ]


def test_tables_say_what_was_not_run() -> None:
    rows = [Row("W8A8", "nearest"), Row("W8A8", "best"), Row("W8A8", "nearest", {}, "m2")]
    models = {
        "a": {"W8A8, nearest": _cell(0.1234567), "W8A8, nearest, m2": _cell(0.5)},
        "b": {FLOAT.name: _cell(0, 190), "W8A8, nearest": _cell(2e-5, 188, size=60)},
    }
    assert list(main_table(models, rows)) == [
        "| scheme | way | KL: a | KL: b | b: right | as float's | bytes of float's |",
        "|---|---|---|---|---|---|---|",
        "| float |  | not run | 0 | 190 of 200 | 180 | 1.00 |",
        "| W8A8 | nearest | 0.123 | 2e-05 | 188 of 200 | 180 | 0.60 |",
        "| W8A8 | best | not run | not run | not run | not run | not run |",
    ]
    last = list(anti_table(models, rows))[-2:]
    assert last == [
        "| W8A8 | nearest | a | 0.123 | not run | 0.5 | not run | not run | not run |",
        "| W8A8 | nearest | b | 2e-05 | not run | not run | not run | not run | not run |",
    ]


def test_a_cell_is_kept_until_its_recipe_is_another(
    tmp_path: Path,
) -> None:
    mini = REPO / "mindformers_glm" / "assets" / "glm4-mini"
    model = MeasuredModel("x", mini, tmp_path / "texts.jsonl", None)
    cells, row = MeasuredCells(tmp_path / "cells", model), Row("W8A8", "best", {"recipe": "best"})
    assert cells.load(row) is None
    cells.save(row, _cell(0.5))
    loaded = cells.load(row)
    assert loaded is not None
    assert loaded["logits"] == {"kl": 0.5}
    assert cells.load(Row("W8A8", "best", {"recipe": "fast"})) is None
    (file,) = (tmp_path / "cells").iterdir()
    kept = json.loads(file.read_text())
    kept["recipe"]["anti_method"] = "m9"  # as an earlier version had it
    file.write_text(json.dumps(kept))
    assert cells.load(row) is None
    file.write_text("{")
    with pytest.raises(ConfigError, match="remove it"):
        cells.load(row)
