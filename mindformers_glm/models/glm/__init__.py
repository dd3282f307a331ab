"""GLM-4 (glm-4-9b-hf, glm-4-9b-chat-hf): the model module, with the file names upstream uses."""

from mindformers_glm.models.glm.configuration_glm import GlmModelConfig
from mindformers_glm.models.glm.modeling_glm import GlmForCausalLM
from mindformers_glm.models.glm.modeling_glm_infer import InferenceGlmForCausalLM

__all__ = ["GlmForCausalLM", "GlmModelConfig", "InferenceGlmForCausalLM"]
