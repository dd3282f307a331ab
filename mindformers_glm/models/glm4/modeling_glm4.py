"""The entry class that checkpoints name in `architectures`."""

from mindformers_glm.models.glm4.configuration_glm4 import Glm4Config
from mindformers_glm.models.glm4.modeling_glm4_infer import InferenceGlm4ForCausalLM
from mindformers_glm.models.glm4.utils import Glm4PreTrainedModel


class Glm4ForCausalLM(Glm4PreTrainedModel):
    """GLM-4-0414; stands for its inference network, as there is no training network."""

    def __new__(cls, config: Glm4Config) -> InferenceGlm4ForCausalLM:
        """Build the inference network without weights (see `from_pretrained`)."""
        return InferenceGlm4ForCausalLM(config)
