"""The entry classes that checkpoints name in `architectures`."""

from mindformers_glm.models.chatglm.configuration_chatglm import ChatGLMConfig
from mindformers_glm.models.chatglm.modeling_chatglm_infer import (
    InferenceChatGLMForConditionalGeneration,
)
from mindformers_glm.models.chatglm.utils import ChatGLMPreTrainedModel


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel):
    """ChatGLM; stands for its inference network, as there is no training network."""

    def __new__(cls, config: ChatGLMConfig) -> InferenceChatGLMForConditionalGeneration:
        """Build the inference network without weights (see `from_pretrained`)."""
        return InferenceChatGLMForConditionalGeneration(config)


class ChatGLMModel(ChatGLMForConditionalGeneration):
    """The same network under the name that the official folders give it."""
