"""What both GLM-4 classes share."""

from mindformers_glm.models.glm.configuration_glm import GlmModelConfig
from mindformers_glm.models.pretrained_model import GlmFamilyPreTrainedModel


class GlmPreTrainedModel(GlmFamilyPreTrainedModel):
    """Loading of GLM-4."""

    config_class = GlmModelConfig
    base_model_prefix = "Glm"
