"""What tests of the whole engine share: `LLM` opens real folders here, and runs on the fake runner.

tests/engine runs whole engines, through `LLMEngine`, `LLM` or `network.generate`, on
fake_runner.py. Tests of one module of the package stand in tests/unit (tests/README.md).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.backends.cpu.backend import CpuBackend
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine import open_model as open_model_module
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.fake_runner import FakeRunner

VOCAB = 257  # of the folder: a token for each byte, and one that ends a text
SHORT = SamplingParams(max_new_tokens=6)


class FakeBackend(CpuBackend):
    """Counts loads; each gives a fake runner of the size that was asked for."""

    def __init__(self) -> None:
        self.settings: list[RunnerSettings] = []
        self.num_threads: list[int | None] = []
        self.gather: Callable[[np.ndarray], np.ndarray] | None = None

    def set_num_threads(self, group: ProcessGroup, count: int | None) -> None:
        self.num_threads.append(count)

    def connect(self, tensor_parallel: TensorParallel, device: Any) -> ProcessGroup:
        if self.gather is not None:  # what another rank answers
            return ProcessGroup(TensorParallel(2, 0), self.gather)
        return ProcessGroup(tensor_parallel)

    def create_runner(
        self, config: Any, checkpoint: Any, settings: RunnerSettings, packed_cache: Any
    ) -> FakeRunner:
        self.settings.append(settings)
        return FakeRunner(config.vocab_size, settings.block_size)


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """What `LLM` takes for the device in all tests of this folder."""
    backend = FakeBackend()
    monkeypatch.setattr(open_model_module, "select_backend", lambda device_target: backend)
    return backend


@pytest.fixture
def edit(checkpoint: Path) -> Callable[..., None]:
    """Change entries of a JSON file of the checkpoint, or write a new one."""

    def edit(name: str, **entries: Any) -> None:
        path = checkpoint / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | entries))

    return edit


def ids_of(text: str, llm: LLM) -> list[int]:
    """The tokens of a text as it is."""
    return llm.tokenizer.encode(text)
