"""What all tests share: tolerances, fixtures from outside, and Hugging Face as the oracle."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parent.parent
MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"

# nohup and shells that run something in the background let it ignore these, and so would all that
# the tests start; a test that sends one would wait for ever.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

# Relative L2 error (L2 of the difference over L2 of the reference) that a result may have.
TOLERANCES = {
    "logits_float32": 1e-4,
    "logits_bfloat16": 1e-2,
    "logits_float16": 4e-3,
    # Against float32 with the same dequantized weights: what is left is activations of 16 bits,
    # or of 8 where a value lands on the other side of a rounding boundary.
    "logits_w8a16": 5e-4,
    "logits_w4a16": 5e-4,
    "logits_w8a8_dynamic": 1e-2,
    "logits_w4a8_dynamic": 1e-2,
    "kernel_float32": 1e-5,
}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """L2 of the difference over L2 of the reference."""
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What a test, or the program in it, tells MindSpore by variables does not reach the next."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Real tokenizers, golden values and quantized models that the repository may not contain."""
    folder = Path(os.environ.get("GLM_FIXTURES", REPO.parent / "shared" / "fixtures"))
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {folder} (set GLM_FIXTURES)")
    return folder


@pytest.fixture(scope="session")
def written_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Hugging Face folder with two shards, for all tests: not to be changed."""
    from tests.e2e.random_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def checkpoint(written_checkpoint: Path, tmp_path: Path) -> Path:
    """The same folder, the test's own to break."""
    return Path(shutil.copytree(written_checkpoint, tmp_path / "checkpoint"))
