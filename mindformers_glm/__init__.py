"""GLM models for MindSpore Transformers, on Ascend and on a plain CPU.

Importing this package registers the GLM classes with MindSpore Transformers: at once where
`mindformers` is already imported, else at the moment it is. Nothing heavy is imported here, so
`mindformers-glm --version` answers at once.
"""

from typing import Any

from mindformers_glm import plugin
from mindformers_glm.version import __version__

# Public name -> module that holds it, imported when first asked for: MindSpore takes seconds.
_LAZY = {
    "LLM": "mindformers_glm.engine.llm",
    "SamplingParams": "mindformers_glm.engine.sampling_params",
    "Glm4Config": "mindformers_glm.models.glm4",
    "Glm4ForCausalLM": "mindformers_glm.models.glm4",
    "InferenceGlm4ForCausalLM": "mindformers_glm.models.glm4",
    "GlmForCausalLM": "mindformers_glm.models.glm",
    "ChatGLMForConditionalGeneration": "mindformers_glm.models.chatglm",
    "ChatGLMModel": "mindformers_glm.models.chatglm",
}
__all__ = ["__version__", *_LAZY]

plugin.register_on_import()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mindformers_glm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
