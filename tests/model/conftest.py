"""Network tests need torch and transformers as the oracle, and MindSpore."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.backends.cpu import library
from tests.conftest import MINI

pytest.importorskip("torch")
pytest.importorskip("mindspore")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 checkpoint with every feature of GLM-4-0414, two layers deep."""
    from tests.model.hf_oracle import save_random_checkpoint

    return save_random_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def questions() -> list[dict[str, Any]]:
    """The held-out questions of the shipped checkpoint, with their answers."""
    lines = (MINI / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def prompts(questions: list[dict[str, Any]]) -> list[list[int]]:
    """Their token ids, by Hugging Face's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MINI)
    return [
        tokenizer.apply_chat_template(
            question["messages"], tools=question.get("tools"), add_generation_prompt=True
        )
        for question in questions
    ]


@pytest.fixture(params=library.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set this machine can run, chosen while a test runs."""
    before = library.isa()
    library.select_isa(request.param)
    yield request.param
    library.select_isa(before)
