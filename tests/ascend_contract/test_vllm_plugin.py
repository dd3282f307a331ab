"""vLLM finds the plugin, and vLLM-MindSpore then runs GLM and ChatGLM and its own GLM-4-0414."""

import json
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm import vllm_mindspore_plugin
from tests.ascend_contract.python_process import run_python
from tests.ascend_contract.vllm_process import RESULT
from tests.ascend_contract.vllm_registry import (
    ANY_MODEL,
    REGISTRY_MODULE,
    imported_registry,
    resolve,
)

pytest.importorskip("mindspore")

NEW = {
    "GlmForCausalLM": "glm",
    "ChatGLMModel": "chatglm",
    "ChatGLMForConditionalGeneration": "chatglm",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package's metadata, as an installation writes them."""
    folder = tmp_path_factory.mktemp("installed")
    run_python("setup.py", "-q", "egg_info", "--egg-base", str(folder))
    return folder


def test_an_installation_has_one_entry_point(installed: Path) -> None:
    found = [e for d in distributions(path=[str(installed)]) for e in d.entry_points]
    (plugin,) = (entry for entry in found if entry.group == "vllm.general_plugins")
    assert plugin.name == "mindformers_glm"
    assert plugin.load() is vllm_mindspore_plugin.register


@pytest.mark.parametrize(
    ("order", "before"),
    [
        ("mindformers", "the model {} is not compatible"),
        # Its list of MindSpore Transformers' models has them then; vLLM asks for them too early.
        ("mindformers_glm,mindformers", [ANY_MODEL, True]),
    ],
)
def test_a_process_of_vllm_mindspore_finds_each_model(
    order: str, before: Any, installed: Path
) -> None:
    lines = run_python("tests/ascend_contract/vllm_process.py", str(installed), order)
    (line,) = (line for line in lines if line.startswith(RESULT))
    found = json.loads(line.removeprefix(RESULT))
    for architecture, model_type in NEW.items():
        wanted = before.format(architecture) if isinstance(before, str) else before
        assert found["before"][architecture] == wanted
        assert found["after"][architecture] == [ANY_MODEL, False]
        assert set(found["classes"][architecture]) == {f"mindformers_glm.models.{model_type}"}
    for architecture in ("Glm4ForCausalLM", "Qwen3ForCausalLM"):
        assert found["before"][architecture] == found["after"][architecture] == [ANY_MODEL, False]
        assert all(name.startswith("mindformers.") for name in found["classes"][architecture])


def test_models_are_known_where_mindformers_is_the_backend() -> None:
    with imported_registry("mindformers") as registry:
        for _ in range(2):  # vLLM does so in some processes
            vllm_mindspore_plugin.register()
    assert registry.MindSporeModelRegistry.warnings == []
    assert [resolve(registry, name) for name in NEW] == [(ANY_MODEL, False)] * len(NEW)


def test_nothing_is_registered_where_native_models_are_wanted() -> None:
    with imported_registry("native") as registry:
        before = dict(registry.MindSporeModelRegistry.models)
        vllm_mindspore_plugin.register()
    assert registry.MindSporeModelRegistry.models == before


def test_nothing_happens_where_vllm_mindspore_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    assert REGISTRY_MODULE not in sys.modules
    vllm_mindspore_plugin.register()
    assert capfd.readouterr() == ("", "")
