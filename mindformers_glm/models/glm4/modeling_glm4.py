"""The entry class of GLM-4-0414, which checkpoints name in `architectures`."""

from mindformers_glm.models.glm4.configuration_glm4 import Glm4Config
from mindformers_glm.models.glm4.modeling_glm4_infer import InferenceGlm4ForCausalLM
from mindformers_glm.models.glm4.utils import Glm4PreTrainedModel


class Glm4ForCausalLM(Glm4PreTrainedModel):
    """GLM-4-0414; stands for its inference class, as nothing trains here.

        network = Glm4ForCausalLM.from_pretrained("DIR", params_dtype="bfloat16")   # with weights
        network = Glm4ForCausalLM(AutoConfig.from_pretrained("DIR"))                # without

    Both give an InferenceGlm4ForCausalLM.
    """

    def __new__(cls, config: Glm4Config) -> InferenceGlm4ForCausalLM:
        """Build the inference class without weights."""
        return InferenceGlm4ForCausalLM(config)
