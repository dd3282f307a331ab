"""Names that both GLM-4-0414 classes share."""

from mindformers_glm.models.family import GlmFamilyPreTrainedModel
from mindformers_glm.models.glm4.configuration_glm4 import Glm4Config


class Glm4PreTrainedModel(GlmFamilyPreTrainedModel):
    """Loading of GLM-4-0414."""

    config_class = Glm4Config
    base_model_prefix = "Glm4"
