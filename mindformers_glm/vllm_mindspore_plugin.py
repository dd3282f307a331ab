"""GLM and ChatGLM in vLLM-MindSpore: what vLLM calls by the entry point `vllm.general_plugins`.

vLLM-MindSpore runs every network of MindSpore Transformers through one class of its own, which asks
`AutoModel.from_config` for it. Of the GLM family its registry knows Glm4ForCausalLM. Here the other
names are registered for that same class, which then finds ours: importing this package has
registered them with MindSpore Transformers (plugin.py). GLM-4-0414 is given back to MindSpore
Transformers' own class, so that whoever installs this package there changes nothing for it.

A name in vLLM's registry is enough. The list `mcore_support_list`, which vLLM-MindSpore also
consults, comes too late: for a name that the registry lacks, vLLM first looks for a class of
transformers, and loads the code of a folder that has some, as ChatGLM's have.

Written from reading, and not run: docs/vllm_mindspore.md says what was read and what is tested.
Source: vllm-mindspore 0.5.1, vllm_mindspore/model_executor (models/registry.py,
model_loader/utils.py, models/mf_models/mindformers.py); vLLM 0.11, docs/design/plugin_system.md.
"""

import sys

from mindformers_glm.config.glm_config import DIALECTS

_REGISTRY_MODULE = "vllm_mindspore.model_executor.models.registry"
_CLASS_FOR_ANY = "MindFormersForCausalLM"
_REGISTERED = ("glm", "chatglm")


def register() -> None:
    """Let vLLM-MindSpore run GLM and ChatGLM; nothing where this process has not imported it.

    vLLM calls it in every process it starts, and may do so several times in one.
    """
    registry_module = sys.modules.get(_REGISTRY_MODULE)
    if registry_module is None:  # not installed, or vLLM runs without it
        return
    registry = registry_module.MindSporeModelRegistry
    known = registry.models
    if _CLASS_FOR_ANY not in known:  # VLLM_MS_MODEL_BACKEND chose other models
        return
    _give_glm4_back()
    entry = known[_CLASS_FOR_ANY]
    for model_type in _REGISTERED:
        for architecture in DIALECTS[model_type].architectures:
            if architecture not in known:
                registry.register_model(architecture, f"{entry.module_name}:{entry.class_name}")


def _give_glm4_back() -> None:
    """Let MindSpore Transformers find its own classes for GLM-4-0414 again."""
    from mindformers.models.glm4.configuration_glm4 import Glm4Config
    from mindformers.models.glm4.modeling_glm4 import Glm4ForCausalLM
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    for kind, cls, name in (
        (MindFormerModuleType.CONFIG, Glm4Config, "glm4"),
        (MindFormerModuleType.MODELS, Glm4ForCausalLM, "Glm4ForCausalLM"),
    ):
        MindFormerRegister.register_cls(cls, module_type=kind, legacy=False, search_names=name)
