"""What the ChatGLM classes share."""

from mindformers_glm.models.chatglm.configuration_chatglm import ChatGLMConfig
from mindformers_glm.models.pretrained_model import GlmFamilyPreTrainedModel


class ChatGLMPreTrainedModel(GlmFamilyPreTrainedModel):
    """Loading of ChatGLM."""

    config_class = ChatGLMConfig
    base_model_prefix = "ChatGLM"
