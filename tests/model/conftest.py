"""Network tests need torch and transformers as the oracle, and MindSpore."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mindformers_glm.kernels.cpu import library

pytest.importorskip("torch")
pytest.importorskip("mindspore")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 checkpoint with every feature of GLM-4-0414, two layers deep."""
    from tests.model.hf_oracle import save_random_checkpoint

    return save_random_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=library.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set this machine can run, chosen while a test runs."""
    before = library.isa()
    library.select_isa(request.param)
    yield request.param
    library.select_isa(before)
