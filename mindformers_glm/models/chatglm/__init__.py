"""ChatGLM2, ChatGLM3, glm-4-9b and codegeex4 in the layout of their own code, which is not run."""

from mindformers_glm.models.chatglm.configuration_chatglm import ChatGLMConfig
from mindformers_glm.models.chatglm.modeling_chatglm import (
    ChatGLMForConditionalGeneration,
    ChatGLMModel,
)
from mindformers_glm.models.chatglm.modeling_chatglm_infer import (
    InferenceChatGLMForConditionalGeneration,
)

__all__ = [
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "ChatGLMModel",
    "InferenceChatGLMForConditionalGeneration",
]
