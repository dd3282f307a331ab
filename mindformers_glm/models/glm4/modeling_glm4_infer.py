"""The inference network of GLM-4-0414."""

from mindformers_glm.models.glm4.utils import Glm4PreTrainedModel
from mindformers_glm.models.inference_model import GlmInferenceModel


class InferenceGlm4ForCausalLM(Glm4PreTrainedModel, GlmInferenceModel):
    """GLM-4-0414: layers with norms before and after attention and MLP."""
