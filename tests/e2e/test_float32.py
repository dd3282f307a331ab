"""README's float32 command against Hugging Face in float32, on random models."""

from pathlib import Path

import pytest
from check_float32 import check_model


# A glm, a chatglm and a glm4 stored in the 16-bit types, where rotary tables rounded to bfloat16
# would change two to four of the answers.
@pytest.mark.parametrize("seed", [4, 5, 6])
def test_its_tokens_are_hugging_faces(seed: int, tmp_path: Path) -> None:
    assert check_model(tmp_path, seed, ["batch"]) == {"batch": 0}


@pytest.mark.tp
@pytest.mark.slow
def test_its_tokens_are_hugging_faces_on_two_ranks(tmp_path: Path) -> None:
    assert check_model(tmp_path, 6, ["two ranks"]) == {"two ranks": 0}
