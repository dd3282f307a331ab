"""Configuration of GLM-4-0414 as MindSpore Transformers sees it."""

from mindformers_glm.models.family_config import GlmFamilyConfig


class Glm4Config(GlmFamilyConfig):
    """The keys of a GLM-4-0414 config.json, plus the run's types and sizes."""

    model_type = "glm4"
