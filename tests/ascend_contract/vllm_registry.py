"""How vLLM-MindSpore 0.5.1 finds the class for an architecture, in our own words.

It cannot be installed beside this project's versions, so this is written from reading its
model_executor (models/registry.py, model_loader/utils.py) and vLLM 0.11's registry. It imports
nothing of this project: in which order things are imported is for a test to say.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from unittest import mock

REGISTRY_MODULE = "vllm_mindspore.model_executor.models.registry"
ANY_MODEL = "MindFormersForCausalLM"
# Its own models, by the backend that VLLM_MS_MODEL_BACKEND names; None: the variable is not set.
_MODELS = "vllm_mindspore.model_executor.models"
_NATIVE = {
    "Glm4ForCausalLM": f"{_MODELS}.glm4:Glm4ForCausalLM",
    "Qwen3ForCausalLM": f"{_MODELS}.qwen3:Qwen3ForCausalLM",
}
_MINDFORMERS = {ANY_MODEL: f"{_MODELS}.mf_models.mindformers:{ANY_MODEL}"}
BACKENDS = {None: _MINDFORMERS | _NATIVE, "mindformers": _MINDFORMERS, "native": _NATIVE}


class Registry:
    """vLLM's `_ModelRegistry`: an entry is where a class lies, until somebody needs it."""

    def __init__(self, entries: dict[str, str]) -> None:
        self.models: dict[str, SimpleNamespace] = {}
        self.warnings: list[str] = []
        for architecture, entry in entries.items():
            self.register_model(architecture, entry)

    def register_model(self, architecture: str, entry: str) -> None:
        if architecture in self.models:
            self.warnings.append(f"{architecture} is already registered")
        module_name, class_name = entry.split(":")
        self.models[architecture] = SimpleNamespace(module_name=module_name, class_name=class_name)


def make_registry_module(backend: str | None = None) -> ModuleType:
    """Its registry behind its import, which reads MindSpore Transformers' registry once."""
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    names = MindFormerRegister.registry[MindFormerModuleType.MODELS]
    module = ModuleType(REGISTRY_MODULE)
    vars(module)["MindSporeModelRegistry"] = Registry(BACKENDS[backend])
    vars(module)["mcore_support_list"] = [
        name.removeprefix("mcore_") for name in names if name.startswith("mcore_")
    ]
    return module


def resolve(module: ModuleType, architecture: str) -> tuple[str, bool]:
    """What becomes of an architecture where no backend was chosen.

    Returns:
        The class that runs it; and whether vLLM looked at transformers and at the folder's own code
        before, as it does for names that the registry lacks.
    """
    models = module.MindSporeModelRegistry.models
    is_known = architecture in models
    is_mindformers = is_known and "mf_models" in models[architecture].module_name
    if architecture in module.mcore_support_list and not is_mindformers:
        architecture = ANY_MODEL
    if architecture not in models:
        raise ValueError(f"the model {architecture} is not compatible")
    return models[architecture].class_name, not is_known


@contextmanager
def imported_registry(backend: str | None = None) -> Iterator[ModuleType]:
    """This process as one that has imported it; MindSpore Transformers' registry is put back."""
    from mindformers.tools.register import MindFormerRegister as Register

    classes = {kind: dict(found) for kind, found in Register.registry.items()}
    module = make_registry_module(backend)
    with (
        mock.patch.object(Register, "search_names_map", dict(Register.search_names_map)),
        mock.patch.object(Register, "registry", classes),
        mock.patch.dict(sys.modules, {REGISTRY_MODULE: module}),
    ):
        yield module
