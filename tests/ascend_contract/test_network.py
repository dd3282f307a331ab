"""Upstream's network behind our runner, under the references, against Hugging Face."""

from collections import Counter
from pathlib import Path

import pytest

from tests.ascend_contract.steps import DIALECTS, KnownSequences, open_runner
from tests.model.dialects import save_dialect


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float16", 4e-3)], ids=["float32", "float16"]
)
@pytest.mark.parametrize(("dialect", "has_bias"), DIALECTS)
def test_each_kind_of_step_equals_hugging_face(
    dialect: str, has_bias: bool, dtype: str, tolerance: float, calls: Counter[str], tmp_path: Path
) -> None:
    folder, source = save_dialect(tmp_path, dialect, attention_bias=has_bias)
    runner = open_runner(folder, dtype)
    errors = KnownSequences(source).errors(runner.execute)
    assert max(errors.values()) < tolerance, errors
    runner.close()
