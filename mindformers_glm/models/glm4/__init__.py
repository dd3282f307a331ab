"""GLM-4-0414 (9B, 32B, GLM-Z1): the model module, with the file names upstream uses."""

from mindformers_glm.models.glm4.configuration_glm4 import Glm4Config
from mindformers_glm.models.glm4.modeling_glm4 import Glm4ForCausalLM
from mindformers_glm.models.glm4.modeling_glm4_infer import InferenceGlm4ForCausalLM

__all__ = ["REGISTERED", "Glm4Config", "Glm4ForCausalLM", "InferenceGlm4ForCausalLM"]

REGISTERED = (Glm4Config, "Glm4Config", (Glm4ForCausalLM, InferenceGlm4ForCausalLM))  # plugin.py
