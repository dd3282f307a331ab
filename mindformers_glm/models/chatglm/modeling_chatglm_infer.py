"""The inference network of ChatGLM."""

from mindformers_glm.models.chatglm.utils import ChatGLMPreTrainedModel
from mindformers_glm.models.inference_model import GlmInferenceModel


class InferenceChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GlmInferenceModel):
    """ChatGLM: layers with norms before attention and MLP only."""
