"""The real operators' own checks of types and shapes, on a machine without a card."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm


def _export(folder: Path, *arguments: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "tests/ascend_contract/export_steps.py", str(folder), *arguments],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in ended.stdout.splitlines() if line.startswith(("float", "bfloat"))]


@pytest.mark.parametrize("dialect", ["glm4", "glm", "chatglm"])
def test_prompts_and_answers_are_calls_that_the_operators_take(
    dialect: str, tmp_path: Path
) -> None:
    model_type = "glm" if dialect == "chatglm" else dialect
    folder = hf_oracle.save_random_checkpoint(tmp_path / "hf", model_type=model_type)
    if dialect == "chatglm":
        folder = to_chatglm(folder, tmp_path / "chatglm")
    assert _export(folder, "bfloat16,float16") == [
        f"{dtype} {step}: exported"
        for dtype in ("bfloat16", "float16")
        for step in ("prefill", "decode")
    ]


@pytest.mark.parametrize("wrong", [["float32"], ["float16", "mask in float32"]])
def test_a_wrong_call_is_found(wrong: list[str], tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path)
    assert not all(line.endswith("exported") for line in _export(folder, *wrong))
