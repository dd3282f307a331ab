"""Servers in this process, on the fake runner."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.engine import open_model as open_model_module
from tests.e2e.random_checkpoint import write_checkpoint
from tests.engine.conftest import FakeBackend
from tests.unit.serving.server.served_model import ASSISTANT, TEMPLATE, ScriptedRunner, ServedModel

StartServer = Callable[..., ServedModel]


class _ScriptedBackend(FakeBackend):
    def create_runner(
        self, config: Any, checkpoint: Any, settings: RunnerSettings, packed_cache: Any
    ) -> ScriptedRunner:
        return ScriptedRunner(config.vocab_size, settings.block_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a token for each byte and one that begins an assistant's message."""
    folder = write_checkpoint(
        tmp_path_factory.mktemp("served"), (ASSISTANT,), max_position_embeddings=65536
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def start_server(folder: Path) -> Iterator[StartServer]:
    """Start servers that live as long as the module's tests."""
    patch = pytest.MonkeyPatch()
    patch.setattr(open_model_module, "select_backend", lambda target: _ScriptedBackend())
    servers: list[ServedModel] = []

    def start(**settings: Any) -> ServedModel:
        settings.setdefault("max_model_len", 4096)
        settings.setdefault("tool_call_parser", "glm4")
        server = ServedModel(folder, **settings)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
    patch.undo()


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServedModel:
    """One with the usual settings, for all tests of a module."""
    return start_server()
