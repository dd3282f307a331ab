"""What both GLM-4-0414 classes share."""

from mindformers_glm.models.glm4.configuration_glm4 import Glm4Config
from mindformers_glm.models.pretrained_model import GlmPreTrainedModel


class Glm4PreTrainedModel(GlmPreTrainedModel):
    """Loading of GLM-4-0414."""

    config_class = Glm4Config
    base_model_prefix = "Glm4"
