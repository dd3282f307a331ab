"""The entry class that checkpoints name in `architectures`."""

from mindformers_glm.models.glm.configuration_glm import GlmModelConfig
from mindformers_glm.models.glm.modeling_glm_infer import InferenceGlmForCausalLM
from mindformers_glm.models.glm.utils import GlmPreTrainedModel


class GlmForCausalLM(GlmPreTrainedModel):
    """GLM-4; stands for its inference network, as there is no training network."""

    def __new__(cls, config: GlmModelConfig) -> InferenceGlmForCausalLM:
        """Build the inference network without weights (see `from_pretrained`)."""
        return InferenceGlmForCausalLM(config)
