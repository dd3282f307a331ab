"""Configuration of ChatGLM as MindSpore Transformers sees it."""

from mindformers_glm.models.family_config import GlmFamilyConfig


class ChatGLMConfig(GlmFamilyConfig):
    """The keys of a ChatGLM config.json, plus the run's types and sizes."""

    model_type = "chatglm"
