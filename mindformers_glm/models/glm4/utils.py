"""What both GLM-4-0414 classes share."""

from mindformers_glm.models.glm4.configuration_glm4 import Glm4Config
from mindformers_glm.models.pretrained_model import GlmFamilyPreTrainedModel


class Glm4PreTrainedModel(GlmFamilyPreTrainedModel):
    """Loading of GLM-4-0414."""

    config_class = Glm4Config
    base_model_prefix = "Glm4"
