"""ChatGLM2, ChatGLM3, glm-4-9b and codegeex4 in the layout of their own code, which is not run."""

from mindformers_glm.models.family import (
    GlmFamilyConfig,
    GlmFamilyPreTrainedModel,
    GlmInferenceModel,
)


class ChatGLMConfig(GlmFamilyConfig):
    """The keys of a ChatGLM config.json, plus the run's types and sizes."""

    model_type = "chatglm"


class ChatGLMPreTrainedModel(GlmFamilyPreTrainedModel):
    """Loading of ChatGLM."""

    config_class = ChatGLMConfig
    base_model_prefix = "ChatGLM"


class InferenceChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GlmInferenceModel):
    """ChatGLM for inference: the network of GLM-4."""


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel):
    """The class that checkpoints name; stands for its inference class, as nothing trains here."""

    def __new__(cls, config: ChatGLMConfig) -> InferenceChatGLMForConditionalGeneration:
        """Build the inference class without weights (see `from_pretrained`)."""
        return InferenceChatGLMForConditionalGeneration(config)


class ChatGLMModel(ChatGLMForConditionalGeneration):
    """The same network under the name that the official folders give it."""


_NETWORKS = (
    ChatGLMForConditionalGeneration,
    ChatGLMModel,
    InferenceChatGLMForConditionalGeneration,
)
REGISTERED = (ChatGLMConfig, "ChatGLMConfig", _NETWORKS)  # plugin.py
