"""GLM-4 (glm-4-9b-hf, glm-4-9b-chat-hf): norms before attention and MLP only."""

from mindformers_glm.models.family import (
    GlmFamilyConfig,
    GlmFamilyPreTrainedModel,
    GlmInferenceModel,
)


class GlmModelConfig(GlmFamilyConfig):
    """The keys of a `glm` config.json, plus the run's types and sizes.

    Hugging Face calls it GlmConfig, which here is the one description of all dialects.
    """

    model_type = "glm"


class GlmPreTrainedModel(GlmFamilyPreTrainedModel):
    """Loading of GLM-4."""

    config_class = GlmModelConfig
    base_model_prefix = "Glm"


class InferenceGlmForCausalLM(GlmPreTrainedModel, GlmInferenceModel):
    """GLM-4 for inference."""


class GlmForCausalLM(GlmPreTrainedModel):
    """The class that checkpoints name; stands for its inference class, as nothing trains here."""

    def __new__(cls, config: GlmModelConfig) -> InferenceGlmForCausalLM:
        """Build the inference class without weights (see `from_pretrained`)."""
        return InferenceGlmForCausalLM(config)


REGISTERED = (GlmModelConfig, "GlmConfig", (GlmForCausalLM, InferenceGlmForCausalLM))  # plugin.py
