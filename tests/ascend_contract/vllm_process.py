"""A process of vLLM-MindSpore's, up to where a model is to be built: told by test_vllm_plugin.py.

    python tests/ascend_contract/vllm_process.py METADATA ORDER

Prints a line with one JSON object: what each architecture becomes before and behind the plugins,
and where the classes lie that MindSpore Transformers then finds for it.
"""

import json
import sys
from importlib import import_module
from importlib.metadata import distributions
from typing import Any

from tests.ascend_contract.vllm_registry import REGISTRY_MODULE, make_registry_module, resolve

RESULT = "RESULT "  # MindSpore Transformers logs to the same place
ARCHITECTURES = {
    "Glm4ForCausalLM": "glm4",
    "GlmForCausalLM": "glm",
    "ChatGLMModel": "chatglm",
    "ChatGLMForConditionalGeneration": "chatglm",
    "Qwen3ForCausalLM": "qwen3",
}


def main(metadata: str, order: str) -> None:
    """Import in this order, load the plugins as vLLM does, and print what is found."""
    for name in order.split(","):
        import_module(name)
    assert ("mindformers_glm" in sys.modules) == ("mindformers_glm" in order)
    registry = sys.modules[REGISTRY_MODULE] = make_registry_module()
    before = {name: _resolve(registry, name) for name in ARCHITECTURES}
    plugins = [
        entry.load()
        for distribution in distributions(path=[metadata])
        for entry in distribution.entry_points
        if entry.group == "vllm.general_plugins"
    ]
    for _ in range(2):
        for plugin in plugins:
            plugin()
    after = {name: _resolve(registry, name) for name in ARCHITECTURES}
    found = {"before": before, "after": after, "classes": _find_classes()}
    print(RESULT + json.dumps(found))


def _resolve(registry: Any, architecture: str) -> Any:
    try:
        return resolve(registry, architecture)
    except ValueError as problem:
        return str(problem)


def _find_classes() -> dict[str, list[str]]:
    from mindformers.core.context.build_context import build_mf_context
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    build_mf_context({"run_mode": "predict", "use_legacy": False, "context": {}, "parallel": {}})
    return {
        architecture: [
            MindFormerRegister.get_cls(kind, name).__module__
            for kind, name in (
                (MindFormerModuleType.CONFIG, model_type),
                (MindFormerModuleType.MODELS, architecture),
            )
        ]
        for architecture, model_type in ARCHITECTURES.items()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
