"""The inference network of GLM-4."""

from mindformers_glm.models.glm.utils import GlmPreTrainedModel
from mindformers_glm.models.inference_model import GlmInferenceModel


class InferenceGlmForCausalLM(GlmPreTrainedModel, GlmInferenceModel):
    """GLM-4: layers with norms before attention and MLP only."""
