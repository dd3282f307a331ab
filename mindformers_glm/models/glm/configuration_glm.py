"""Configuration of GLM-4 as MindSpore Transformers sees it."""

from mindformers_glm.models.family_config import GlmFamilyConfig


class GlmModelConfig(GlmFamilyConfig):
    """The keys of a `glm` config.json, plus the run's types and sizes.

    Hugging Face calls it GlmConfig, which here is the one description of all dialects.
    """

    model_type = "glm"
