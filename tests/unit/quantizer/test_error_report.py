"""The report of a quantized folder: table, JSON and picture."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantizer.error_picture import Mark, draw_errors
from mindformers_glm.quantizer.output_error import OUTPUTS, OutputError
from mindformers_glm.quantizer.report import ErrorReport
from mindformers_glm.quantizer.result import LayerResult, QuantizedModule

_SVG = "{http://www.w3.org/2000/svg}"
_ROWS = QuantizedRows(
    np.zeros((1, 1), np.int8), np.ones((1, 1), np.float32), None, np.zeros(1, np.int32)
)


def _layer(number: int | None, **snr_db: float) -> LayerResult:
    prefix = "" if number is None else f"model.layers.{number}.mlp."
    modules = tuple(
        QuantizedModule(
            f"{prefix}{name}", "W8A8", 8, None, _ROWS, error=OutputError(OUTPUTS, snr, 0.99, 2, 50)
        )
        for name, snr in snr_db.items()
    )
    return LayerResult(modules, {}, number=number)


@pytest.fixture
def report() -> ErrorReport:
    """Of two layers and the output layer."""
    found = ErrorReport({"source": "/models/x", "recipe": {"weight_bits": 8}})
    layers = [_layer(0, up=40, down=20.25), _layer(1, up=41.5, down=30), _layer(None, lm_head=50)]
    assert list(found.watch(iter(layers))) == layers
    return found


def test_the_table_has_the_worst_linear_of_each_layer(report: ErrorReport) -> None:
    lines = report.table().splitlines()[2:]
    assert [line.split() for line in lines] == [
        ["0", "20.2", "0.990000", "2", "of", "50", "mlp.down"],
        ["1", "30.0", "0.990000", "2", "of", "50", "mlp.down"],
        ["output", "50.0", "0.990000", "2", "of", "50", "lm_head"],
    ]


def test_a_folder_without_rounded_linears_is_told() -> None:
    assert "nothing to measure" in ErrorReport({}).table()


def test_files_are_written_and_written_again(report: ErrorReport, tmp_path: Path) -> None:
    report.write(tmp_path)
    report.write(tmp_path, {"kl": 0.5})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.svg"]
    content = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (content["source"], content["whole"]) == ("/models/x", {"kl": 0.5})
    assert [one["layer"] for one in content["modules"]] == [0, 0, 1, 1, None]
    assert content["modules"][1] == {
        "name": "model.layers.0.mlp.down",
        "layer": 0,
        "kind": "mlp.down",
        "scheme": "W8A8",
        "weight_bits": 8,
        "group_size": None,
        "error": {
            "measured_on": "outputs",
            "snr_db": 20.25,
            "cosine": 0.99,
            "largest": 2,
            "largest_value": 50,
        },
    }


def test_the_picture_has_a_mark_for_each_linear(report: ErrorReport, tmp_path: Path) -> None:
    report.write(tmp_path)
    root = ElementTree.parse(tmp_path / "report.svg").getroot()
    circles = root.findall(f"{_SVG}circle")
    assert len(circles) == 5
    assert len(root.findall(f"{_SVG}polyline")) == 3
    texts = [text.text for text in root.findall(f"{_SVG}text")]
    assert {"mlp.up", "mlp.down", "lm_head"} <= set(texts)
    heights = {circle.get("cx"): float(circle.get("cy") or 0) for circle in circles}
    assert all(40 <= height <= 370 for height in heights.values())


@pytest.mark.parametrize(
    "marks",
    [[], [Mark(None, "a", 0)], [Mark(0, "<&>", 200), Mark(99, "b", -200)]],
    ids=["none", "one", "far apart"],
)
def test_any_errors_can_be_drawn(marks: list[Mark]) -> None:
    root = ElementTree.fromstring(draw_errors(marks, "weights"))
    circles = root.findall(f"{_SVG}circle")
    assert len(circles) == len(marks)
    for circle in circles:
        assert 60 <= float(circle.get("cx") or 0) <= 690
        assert 40 <= float(circle.get("cy") or 0) <= 370
