"""Upstream's network behind our runner, under the references, against Hugging Face."""

from collections import Counter
from pathlib import Path

import pytest

from tests.ascend_contract.steps import DIALECTS, Sequences, open_runner, save_dialect


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float16", 4e-3)], ids=["float32", "float16"]
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_kind_of_step_equals_hugging_face(
    dialect: str, dtype: str, tolerance: float, calls: Counter[str], tmp_path: Path
) -> None:
    folder, source = save_dialect(tmp_path, dialect)
    runner = open_runner(folder, dtype)
    errors = Sequences(source).errors(runner)
    assert max(errors.values()) < tolerance, errors
    runner.close()
